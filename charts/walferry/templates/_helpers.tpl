{{/* The chart's name. */}}
{{- define "walferry.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{/* What the names of all objects begin with. 50 characters, so that the Service's name has 63 at most. */}}
{{- define "walferry.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "walferry.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "walferry.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* By which the operator's pods are known. */}}
{{- define "walferry.selectorLabels" -}}
app.kubernetes.io/name: {{ include "walferry.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end }}

{{/* By which the replicators' pods are known: the operator labels them, so no value changes these. */}}
{{- define "walferry.replicatorLabels" -}}
app.kubernetes.io/name: walferry
app.kubernetes.io/component: replicator
app.kubernetes.io/managed-by: walferry
{{- end }}

{{/* Labels of all objects. */}}
{{- define "walferry.labels" -}}
{{- with .Values.commonLabels -}}
{{ toYaml . }}
{{ end -}}
{{ include "walferry.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: walferry
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Name of the operator's ServiceAccount. */}}
{{- define "walferry.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "walferry.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{/* Full reference of the operator's image. */}}
{{- define "walferry.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* What the operator may do in the namespaces that it watches. config/rbac/role.yaml says the same. */}}
{{- define "walferry.rules" -}}
- apiGroups: [walferry.dev]
  resources: [mirrors, replicationpeers]
  verbs: [get, list, watch, patch]
- apiGroups: [walferry.dev]
  resources: [mirrors/status, replicationpeers/status]
  verbs: [patch]
# The credentials that peers refer to; read, never written.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch]
# A replicator's configuration and Deployment.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [list, watch, create, patch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list, watch, create, patch, delete]
# Why a replicator doesn't run.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{/* Peers of a NetworkPolicy: the namespaces that may read metrics. */}}
{{- define "walferry.metricsPeers" -}}
{{- with .Values.networkPolicy.metricsNamespaces -}}
- namespaceSelector:
    matchExpressions:
      - key: kubernetes.io/metadata.name
        operator: In
        values:
          {{- toYaml . | nindent 10 }}
{{- end -}}
{{- end }}
