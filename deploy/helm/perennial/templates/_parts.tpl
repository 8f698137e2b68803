{{- define "perennial.image" -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- end }}

{{- define "perennial.labels" -}}
app.kubernetes.io/part-of: perennial
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- /* Nobody in particular, who can write nowhere but into what is mounted. */}}
{{- define "perennial.podSecurity" -}}
runAsNonRoot: true
runAsUser: 50000
runAsGroup: 50000
fsGroup: 50000
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "perennial.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "perennial.volumes" -}}
- {name: tmp, emptyDir: {sizeLimit: 8Gi}}
- {name: home, emptyDir: {sizeLimit: 64Mi}}
- {name: state, persistentVolumeClaim: {claimName: {{ .Values.airflow.stateClaim }}}}
- {name: logs, persistentVolumeClaim: {claimName: {{ .Values.airflow.logsClaim }}}}
{{- if .Values.models.repository }}
- {name: models, persistentVolumeClaim: {claimName: {{ .Values.models.claim }}, readOnly: true}}
{{- end }}
{{- end }}

{{- define "perennial.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: home, mountPath: /opt/airflow}
- {name: state, mountPath: /var/lib/perennial}
- {name: logs, mountPath: /var/log/airflow}
{{- if .Values.models.repository }}
- {name: models, mountPath: /opt/perennial/include/models-from-git, readOnly: true}
{{- end }}
{{- end }}
