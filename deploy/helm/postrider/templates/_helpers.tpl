{{- define "postrider.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Of a component: (dict "root" $ "role" "worker"). */ -}}
{{- define "postrider.selector" -}}
app.kubernetes.io/name: postrider
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end -}}

{{- /* Of pods: nothing that changes with the chart, so that an upgrade replaces no role before its step. */ -}}
{{- define "postrider.podLabels" -}}
{{ include "postrider.selector" . }}
app.kubernetes.io/part-of: postrider
{{- end -}}

{{- define "postrider.labels" -}}
{{ include "postrider.podLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "postrider.image" -}}
{{- $own := (index .root.Values .role).image -}}
{{- $digest := $own.digest | default (ternary "" .root.Values.image.digest (ne $own.tag "")) -}}
{{- $tag := $own.tag | default .root.Values.image.tag | default .root.Chart.AppVersion -}}
{{- if $digest -}}
{{ printf "%s@%s" .root.Values.image.repository $digest }}
{{- else -}}
{{ printf "%s:%s" .root.Values.image.repository $tag }}
{{- end -}}
{{- end -}}

{{- define "postrider.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "postrider.name" .) }}
{{- end -}}

{{- define "postrider.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "postrider.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{- /* One secret as a variable: (dict "variable" "POSTRIDER_…" "from" .Values.secrets.…). */ -}}
{{- define "postrider.secretEnv" -}}
- name: {{ .variable }}
  valueFrom: { secretKeyRef: { name: {{ .from.name | quote }}, key: {{ .from.key | quote }} } }
{{- end -}}

{{- define "postrider.storeEnv" -}}
{{ include "postrider.secretEnv" (dict "variable" "POSTRIDER_STORE__URL" "from" .Values.secrets.storeUrl) }}
{{ include "postrider.secretEnv" (dict "variable" "POSTRIDER_SECRETS__KEY" "from" .Values.secrets.secretsKey) }}
{{- end -}}

{{- /* A collector's address that has a password; as a setting it would stand in the pod in clear: (dict "root" $ "role" …). */ -}}
{{- define "postrider.tracesEnv" -}}
{{- $endpoint := include "postrider.setting" (dict "root" .root "role" .role "section" "traces" "key" "endpoint" "default" "") -}}
{{- if contains "@" $endpoint -}}
{{- fail "traces.endpoint has a user or password: put that URL into a Secret and name it in secrets.tracesEndpoint" -}}
{{- end -}}
{{- with .root.Values.secrets.tracesEndpoint -}}
{{- if .name -}}
{{- if $endpoint -}}
{{- fail "traces.endpoint and secrets.tracesEndpoint are both set: leave one of them out" -}}
{{- end -}}
{{ include "postrider.secretEnv" (dict "variable" "POSTRIDER_TRACES__ENDPOINT" "from" .) }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Settings, section by section, as variables. Numbers of values files are floats here, and large ones would get an exponent. */ -}}
{{- define "postrider.configEnv" -}}
{{- range $section, $keys := . }}
{{- range $key, $value := $keys }}
- name: {{ printf "POSTRIDER_%s__%s" (upper $section) (upper $key) }}
  value: {{ if kindIs "slice" $value }}{{ join "," $value | quote }}{{ else if and (kindIs "float64" $value) (eq (toString (floor $value)) (toString $value)) }}{{ int64 $value | quote }}{{ else }}{{ $value | toString | quote }}{{ end }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* A setting's value for a role, or the default: (dict "root" $ "role" … "section" … "key" … "default" …). */ -}}
{{- define "postrider.setting" -}}
{{- $all := mergeOverwrite (deepCopy .root.Values.config) (deepCopy (index .root.Values .role).config) -}}
{{- dig .section .key .default $all -}}
{{- end -}}
