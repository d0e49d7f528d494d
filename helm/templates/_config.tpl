{{/* Where each secret lies as a file. One list decides both the mounts and the *_file keys.
     Gives {"sources": projected volume sources, "files": {settings path: file}}. */}}
{{- define "persona-monitor.secretFiles" -}}
{{- $s := .Values.secrets }}
{{- $tls := $s.kafkaTls }}
{{- $wanted := list
  (list "postgres.url_file" $s.postgresUrl.existingSecret $s.postgresUrl.key "postgres-url")
  (list "privacy.hash_key_file" $s.hashKey.existingSecret $s.hashKey.key "hash-key")
  (list "kafka.sasl_password_file" $s.kafkaPassword.existingSecret $s.kafkaPassword.key "kafka-password")
  (list "kafka.oauth_client_secret_file" $s.kafkaOauthClientSecret.existingSecret $s.kafkaOauthClientSecret.key "kafka-oauth-client-secret")
  (list "server_canaries.key_file" $s.serverKey.existingSecret $s.serverKey.key "server-key")
  (list "replay.key_file" $s.replayKey.existingSecret $s.replayKey.key "replay-key")
  (list "kafka.oauth_token_file" $s.kafkaOauthToken.existingSecret $s.kafkaOauthToken.key "kafka-oauth-token")
  (list "kafka.ssl_cafile" $tls.existingSecret $tls.ca "kafka-ca.crt")
  (list "kafka.ssl_certfile" $tls.existingSecret $tls.certificate "kafka-tls.crt")
  (list "kafka.ssl_keyfile" $tls.existingSecret $tls.privateKey "kafka-tls.key")
  (list "kafka.ssl_password_file" $tls.existingSecret $tls.privateKeyPassword "kafka-tls.password") }}
{{- range $name, $ref := $s.endpoints }}
{{- $wanted = append $wanted (list (printf "endpoint.%s" $name) $ref.existingSecret $ref.key (printf "endpoint-%s" $name)) }}
{{- end }}
{{- $sources := list }}
{{- $files := dict }}
{{- range $wanted }}
{{- $setting := index . 0 }}{{ $secret := index . 1 }}{{ $key := index . 2 }}{{ $file := index . 3 }}
{{- if and $secret $key }}
{{- $sources = append $sources (dict "secret" (dict "name" $secret "items" (list (dict "key" $key "path" $file)))) }}
{{- $_ := set $files $setting (printf "/etc/monitor/secrets/%s" $file) }}
{{- end }}
{{- end }}
{{- if not (hasKey $files "postgres.url_file") }}
{{- fail "secrets.postgresUrl.existingSecret is needed: a Secret whose key `url` holds postgresql+psycopg://user:password@host/monitor" }}
{{- end }}
{{- dict "sources" $sources "files" $files | toJson }}
{{- end }}

{{/* The monitor's configuration: the user's, with what the chart knows better on top. */}}
{{- define "persona-monitor.config" -}}
{{- $config := deepCopy .Values.config }}
{{- $files := (include "persona-monitor.secretFiles" . | fromJson).files }}
{{- $endpoints := list }}
{{- $named := dict }}
{{- range (dig "alerts" "endpoints" list $config) }}
{{- $file := get $files (printf "endpoint.%s" .name) }}
{{- $_ := set $named .name true }}
{{- $endpoints = append $endpoints (ternary (merge (dict "secret_file" $file) .) . (ne $file "")) }}
{{- end }}
{{- range $name, $_ := .Values.secrets.endpoints }}
{{- if not (hasKey $named $name) }}
{{- fail (printf "secrets.endpoints.%s: no endpoint of that name in config.alerts.endpoints" $name) }}
{{- end }}
{{- end }}
{{- if $endpoints }}
{{- $_ := set $config.alerts "endpoints" $endpoints }}
{{- end }}
{{- range $setting, $file := $files }}
{{- $path := splitList "." $setting }}
{{- if ne (first $path) "endpoint" }}
{{- $_ := set $config (first $path) (merge (dict (last $path) $file) (get $config (first $path) | default dict)) }}
{{- end }}
{{- end }}
{{- $_ := set $config "replay" (merge (dict "model" (clean (printf "%s/%s" .Values.model.mountPath .Values.model.path))) ($config.replay | default dict)) }}
{{- if .Values.pack.volume }}
{{- $_ := set $config "pack" (merge (dict "path" (clean (printf "%s/%s" .Values.pack.mountPath .Values.pack.path))) ($config.pack | default dict)) }}
{{- end }}
{{- /* Probes and scrapes come from outside the pod; the face has no log-in, see docs/deploy.md. */}}
{{- $_ := set $config "web" (merge (dict "host" "0.0.0.0" "port" .Values.service.port) ($config.web | default dict)) }}
{{- if not (hasKey $config "shutdown_grace") }}
{{- $_ := set $config "shutdown_grace" (sub .Values.terminationGracePeriodSeconds 15) }}
{{- end }}
{{- toYaml $config }}
{{- end }}
