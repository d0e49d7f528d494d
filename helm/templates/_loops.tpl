{{/* Which Deployments there are: [{component, command, replays, replicas, resources}]. */}}
{{- define "persona-monitor.loops" -}}
{{- $v := .Values }}
{{- $loops := list }}
{{- if eq $v.mode "deployment" }}
{{- if $v.split }}
{{- range $name := list "worker" "watcher" "courier" "web" }}
{{- $own := get $v $name }}
{{- $replays := eq $name "worker" }}
{{- $loops = append $loops (dict "component" $name "command" $name "replays" $replays "replicas" $own.replicas "resources" (ternary ($own.resources | default $v.resources) $own.resources $replays)) }}
{{- end }}
{{- else }}
{{- $loops = list (dict "component" "monitor" "command" "run" "replays" true "replicas" $v.replicas "resources" $v.resources) }}
{{- end }}
{{- end }}
{{- dict "loops" $loops | toJson }}
{{- end }}
