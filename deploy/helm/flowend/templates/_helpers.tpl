{{- define "flowend.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The Collector's objects: NAME-collector or NAME-gateway. */ -}}
{{- define "flowend.collector.fullname" -}}
{{- printf "%s-%s" (include "flowend.fullname" .) (eq .Values.collector.mode "gateway" | ternary "gateway" "collector") -}}
{{- end -}}

{{- define "flowend.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "flowend.labels" -}}
{{ include "flowend.selector" . }}
app.kubernetes.io/component: probe
{{ include "flowend.commonLabels" . }}
{{- end -}}

{{- define "flowend.collector.selector" -}}
app.kubernetes.io/name: {{ printf "%s-collector" (default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-") }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "flowend.collector.labels" -}}
{{ include "flowend.collector.selector" . }}
app.kubernetes.io/component: collector
{{ include "flowend.commonLabels" . }}
{{- end -}}

{{- define "flowend.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: flowend
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "flowend.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "flowend.collector.image" -}}
{{ .Values.collector.image.repository }}:{{ .Values.collector.image.tag }}
{{- end -}}

{{- define "flowend.priorityClassName" -}}
{{- if .Values.priorityClass.create -}}
{{- .Values.priorityClass.name | default (include "flowend.fullname" .) -}}
{{- else -}}
{{- .Values.priorityClass.name -}}
{{- end -}}
{{- end -}}

{{- /* Where a flowend sends that has no agent beside it. */ -}}
{{- define "flowend.endpoint" -}}
{{- if and (eq .Values.mode "sidecar") (eq .Values.collector.mode "gateway") (not .Values.collector.endpoint) -}}
{{- fail "collector.mode: \"gateway\" is for daemonset: each sidecar would choose a gateway for itself, and the two spans of a connection would not meet; take \"single\", or say collector.endpoint, an agent of yours" -}}
{{- end -}}
{{- if .Values.collector.endpoint -}}
{{- .Values.collector.endpoint -}}
{{- else if eq .Values.collector.mode "external" -}}
{{- fail "collector.endpoint: with collector.mode \"external\" say where the Collector is, for example http://collector.monitoring.svc:4317" -}}
{{- else -}}
{{- printf "http://%s.%s.svc:4317" (include "flowend.collector.fullname" .) .Release.Namespace -}}
{{- end -}}
{{- end -}}

{{- /* Listening of a Collector in a pod; the context has `address` and the Collector's `values`. */ -}}
{{- define "flowend.collector.listen" -}}
{{- $address := contains ":" . | ternary (printf "[%s]" .) . -}}
- name: OTLP_GRPC_LISTEN
  value: {{ printf "%s:4317" $address | quote }}
- name: OTLP_HTTP_LISTEN
  value: {{ printf "%s:4318" $address | quote }}
- name: PROMETHEUS_LISTEN
  value: {{ printf "%s:8889" $address | quote }}
- name: HEALTH_LISTEN
  value: {{ printf "%s:13133" $address | quote }}
- name: TELEMETRY_HOST
  value: {{ . | quote }}
{{- end -}}

{{- /* Root without rights but the capabilities given: Kubernetes gives added ones to user 0 only. */ -}}
{{- define "flowend.securityContext" -}}
runAsUser: 0
runAsGroup: 0
runAsNonRoot: false
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  add:
    {{- toYaml . | nindent 4 }}
{{- end -}}

{{- define "flowend.unprivileged" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /*
flowend as a native sidecar: an item of a pod's initContainers, for the connections of that pod alone. From a chart
that has this one as a dependency:

    spec:
      enableServiceLinks: false
      initContainers:
        {{- include "flowend.sidecar" .Subcharts.flowend | nindent 8 }}
      volumes:
        {{- include "flowend.sidecar.volumes" .Subcharts.flowend | nindent 8 }}

No startupProbe: the application would not start without flowend. No readinessProbe: the pod would leave its Services
while the Collector is away.
*/ -}}
{{- define "flowend.sidecar" -}}
- name: flowend
  restartPolicy: Always
  image: {{ include "flowend.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [run]
  env:
    - name: POD_UID
      valueFrom:
        fieldRef:
          fieldPath: metadata.uid
    - name: POD_NAME
      valueFrom:
        fieldRef:
          fieldPath: metadata.name
    - name: POD_NAMESPACE
      valueFrom:
        fieldRef:
          fieldPath: metadata.namespace
    - name: NODE_NAME
      valueFrom:
        fieldRef:
          fieldPath: spec.nodeName
    # This pod alone: the cgroup that the kubelet made for it, by whatever name.
    - name: FLOWEND_TARGETS
      value: pod:$(POD_UID)
    - name: OTEL_EXPORTER_OTLP_ENDPOINT
      value: {{ include "flowend.endpoint" . | quote }}
    - name: OTEL_RESOURCE_ATTRIBUTES
      value: k8s.pod.uid=$(POD_UID),k8s.pod.name=$(POD_NAME),k8s.namespace.name=$(POD_NAMESPACE),k8s.node.name=$(NODE_NAME)
    - name: FLOWEND_RESOURCE__LABELS_FILE
      value: /etc/podinfo/labels
    - name: FLOWEND_RESOURCE__SERVICE_NAME
      value: {{ .Values.sidecar.serviceName | quote }}
    - name: FLOWEND_TELEMETRY__LISTEN
      value: {{ contains ":" .Values.collector.listenAddress | ternary "[::]:9464" "0.0.0.0:9464" | quote }}
    - name: FLOWEND_TELEMETRY__OTLP
      value: "true"
    - name: FLOWEND_TELEMETRY__OTLP_INTERVAL
      value: 15s
    {{- with .Values.sidecar.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - name: flowend
      containerPort: 9464
  livenessProbe:
    httpGet:
      path: /livez
      port: flowend
    periodSeconds: 10
    failureThreshold: 3
  resources:
    {{- toYaml .Values.sidecar.resources | nindent 4 }}
  securityContext:
    {{- include "flowend.securityContext" .Values.sidecar.capabilities | nindent 4 }}
    seccompProfile:
      {{- toYaml .Values.seccompProfile | nindent 6 }}
  volumeMounts:
    - name: flowend-cgroup
      mountPath: /host/cgroup
      readOnly: true
    - name: flowend-podinfo
      mountPath: /etc/podinfo
      readOnly: true
{{- end -}}

{{- /* The volumes of flowend.sidecar: items of a pod's volumes. */ -}}
{{- define "flowend.sidecar.volumes" -}}
# The host's, at a path of its own: the pod's own mount at /sys/fs/cgroup shows one container.
- name: flowend-cgroup
  hostPath:
    path: /sys/fs/cgroup
    type: Directory
- name: flowend-podinfo
  downwardAPI:
    items:
      - path: labels
        fieldRef:
          fieldPath: metadata.labels
{{- end -}}
