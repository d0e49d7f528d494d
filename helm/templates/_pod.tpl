{{/* Parts of a pod, shared by Deployments, the migration Job and the sidecar.
     Call with (dict "root" $ "command" "worker" "replays" true …). `beside` marks the pod of somebody
     else: nothing of ours that is missing may hold it back. */}}

{{- define "persona-monitor.env" -}}
- name: MONITOR_CONFIG
  value: /etc/monitor/monitor.yaml
- name: HOME
  value: /tmp
- name: HF_HUB_OFFLINE
  value: "1"
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "persona-monitor.mounts" -}}
- name: monitor-config
  mountPath: /etc/monitor/monitor.yaml
  subPath: monitor.yaml
  readOnly: true
- name: monitor-secrets
  mountPath: /etc/monitor/secrets
  readOnly: true
- name: monitor-tmp
  mountPath: /tmp
{{- if .replays }}
- name: monitor-model
  mountPath: {{ .root.Values.model.mountPath }}
  readOnly: true
{{- if .root.Values.pack.volume }}
- name: monitor-pack
  mountPath: {{ .root.Values.pack.mountPath }}
  readOnly: true
{{- end }}
{{- end }}
{{- end }}

{{- define "persona-monitor.volumes" -}}
{{- $root := .root }}
- name: monitor-config
  configMap:
    name: {{ .configMap | default (include "persona-monitor.fullname" $root) }}
    {{- if .beside }}
    optional: true
    {{- end }}
- name: monitor-secrets
  projected:
    # The fsGroup of a pod that is not ours is not known: its sidecar reads by "others".
    defaultMode: {{ ternary "0444" "0440" (eq $root.Values.mode "sidecar") }}
    sources:
      {{- range (include "persona-monitor.secretFiles" $root | fromJson).sources }}
      {{- if $.beside }}{{ $_ := set .secret "optional" true }}{{ end }}
      - {{- toYaml . | nindent 8 }}
      {{- end }}
- name: monitor-tmp
  emptyDir:
    sizeLimit: {{ $root.Values.tmpSizeLimit }}
{{- if .replays }}
{{- if not $root.Values.model.volume }}
{{- fail "model.volume is needed: a volume source that holds the model, e.g. {persistentVolumeClaim: {claimName: model, readOnly: true}}" }}
{{- end }}
- name: monitor-model
  {{- toYaml $root.Values.model.volume | nindent 2 }}
{{- with $root.Values.pack.volume }}
- name: monitor-pack
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{- define "persona-monitor.container" -}}
{{- $root := .root }}
name: {{ .name | default "monitor" }}
image: {{ include "persona-monitor.image" $root | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
args: [{{ .command }}]
env:
  {{- include "persona-monitor.env" $root | nindent 2 }}
ports:
  - name: monitor-http
    containerPort: {{ $root.Values.service.port }}
{{- if ne $root.Values.mode "sidecar" }}
# Startup and liveness ask only whether the loops go round (one that still loads its model has not
# begun to): a dependency that is down restarts nothing. Readiness asks for model, database and
# assignment.
startupProbe:
  httpGet: {path: /livez, port: monitor-http}
  periodSeconds: 5
  failureThreshold: {{ div (int $root.Values.startup.seconds) 5 }}
readinessProbe:
  httpGet: {path: /readyz, port: monitor-http}
  periodSeconds: 10
  timeoutSeconds: 5
livenessProbe:
  httpGet: {path: /livez, port: monitor-http}
  periodSeconds: 15
  timeoutSeconds: 5
  failureThreshold: 4
{{- end }}
{{- $resources := deepCopy (.resources | default dict) }}
{{- if and .replays (gt (int $root.Values.gpu.count) 0) }}
{{- $_ := set $resources "limits" (merge (dict $root.Values.gpu.resource (int $root.Values.gpu.count)) ($resources.limits | default dict)) }}
{{- end }}
resources:
  {{- toYaml $resources | nindent 2 }}
{{- $security := $root.Values.securityContext }}
{{- if eq $root.Values.mode "sidecar" }}
{{- $security = merge (deepCopy $security) (omit $root.Values.podSecurityContext "fsGroup" "fsGroupChangePolicy" "supplementalGroups" "sysctls") }}
{{- end }}
securityContext:
  {{- toYaml $security | nindent 2 }}
volumeMounts:
  {{- include "persona-monitor.mounts" . | nindent 2 }}
{{- end }}

{{- define "persona-monitor.podSpec" -}}
{{- $root := .root }}
serviceAccountName: {{ include "persona-monitor.serviceAccount" $root }}
automountServiceAccountToken: false
# A Service called "monitor" would put MONITOR_PORT and the like into the environment, and unknown
# MONITOR_* variables are refused.
enableServiceLinks: false
terminationGracePeriodSeconds: {{ $root.Values.terminationGracePeriodSeconds }}
securityContext:
  {{- toYaml $root.Values.podSecurityContext | nindent 2 }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.extraInitContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - {{- include "persona-monitor.container" . | nindent 4 }}
volumes:
  {{- include "persona-monitor.volumes" . | nindent 2 }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" }}
{{- with get $root.Values $key }}
{{ $key }}: {{- if kindIs "string" . }} {{ . }}{{ else }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
