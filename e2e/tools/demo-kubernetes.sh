# shellcheck shell=bash
# The tour of the operator, sourced by e2e/demo.
# shellcheck disable=SC2154  # e2e/demo sets these variables

NAMESPACE=walferry-demo    # of the Mirror
SYSTEM=walferry-system     # of the operator
CRDS=(mirrors.walferry.dev replicationpeers.walferry.dev)

path_before=$PATH
cluster_process=           # `e2e/tools/cluster serve`, if the tour started a cluster
installed=                 # set while objects of the tour may be in the cluster

tour_failed() {
  [ -n "$installed" ] || return 0
  local look
  for look in "describe mirrors,replicationpeers,pods --namespace $NAMESPACE" "get pods --namespace $SYSTEM" \
    "logs --tail=30 deployment/walferry --namespace $SYSTEM"; do
    echo "--- kubectl $look"
    # shellcheck disable=SC2086
    kubectl $look
  done
}

# Stops the tour's cluster, or removes everything from a cluster that existed before.
tour_ended() {
  if [ -n "$cluster_process" ]; then
    # The whole process group, because a shell that waits for a child does not handle signals.
    kill -- "-$cluster_process" 2>/dev/null || true
    wait "$cluster_process" 2>/dev/null || true
  elif [ -n "$installed" ]; then
    uninstall >/dev/null 2>&1 || echo "the namespaces $NAMESPACE and $SYSTEM of your cluster still have objects of the demo" >&2
  fi
}

# Deletes objects with finalizers while the operator still runs, then the operator, then the CRDs.
uninstall() {
  kubectl delete mirrors,replicationpeers --all --namespace "$NAMESPACE" --ignore-not-found --timeout=60s
  helm uninstall walferry --namespace "$SYSTEM" --ignore-not-found --wait
  kubectl delete namespace "$NAMESPACE" "$SYSTEM" --ignore-not-found --timeout=60s
  kubectl delete crd "${CRDS[@]}" --ignore-not-found --timeout=60s
  installed=
}

use_cluster() {
  [ -n "${E2E_IMAGE:-}" ] || fail "E2E_KUBECONFIG needs E2E_IMAGE: the image to run, which the nodes have or can pull"
  [ -n "${E2E_HOST_ADDRESS:-}" ] || fail "E2E_KUBECONFIG needs E2E_HOST_ADDRESS: where pods reach this machine"
  export KUBECONFIG=$E2E_KUBECONFIG
  image=$E2E_IMAGE address=$E2E_HOST_ADDRESS
  step "Your cluster"
  local crds; crds=$(kubectl get crd "${CRDS[@]}" --ignore-not-found --output name)
  [ -z "$crds" ] || fail "walferry is already installed in this cluster ($crds), and the demo would disturb it"
  done_with "Kubernetes $(server_version)"
}

start_cluster() {
  local archive bytes word cluster started
  is_root || fail "only root can start a cluster here; ./e2e/demo --help says how to use an existing one"
  step "The image"
  note "building the Dockerfile with buildah; the first time takes a few minutes"
  { read -r archive; read -r image; read -r bytes; } < <("$here/tools/image")
  [ -n "${bytes:-}" ] || fail "e2e/tools/image built no image"
  done_with "$image, $((bytes >> 20)) MiB"

  step "A cluster: etcd, apiserver, controller-manager, scheduler, containerd, kubelet, kube-proxy"
  note "the first start builds them, which takes some minutes"
  PATH=$PATH:$("$here/tools/cluster" tools)
  started=$(now_ms)
  # In its own session, so that Ctrl-C reaches only this script, which then stops everything in order.
  coproc CLUSTER { exec setsid "$here/tools/cluster" serve; }
  cluster_process=$CLUSTER_PID
  read -r word cluster <&"${CLUSTER[0]}" || fail "the cluster did not start"
  [ "$word" = ready ] || fail "the cluster did not start: $word $cluster"
  export KUBECONFIG=$cluster/admin.kubeconfig
  "$here/tools/cluster" load "$cluster" "$archive"
  address=$("$here/tools/cluster" address)
  done_with "Kubernetes $(server_version), ready in $((($(now_ms) - started) / 1000)) s"
}

server_version() { kubectl get --raw /version | sed -n 's/.*"gitVersion": "\(.*\)".*/\1/p'; }

install_operator() {
  step "Install the operator"
  local tag=(--set "image.repository=${image%:*}" --set "image.tag=${image##*:}")
  case "$image" in *@*) tag=(--set "image.repository=${image%@*}" --set "image.digest=${image##*@}") ;; esac
  shown "helm install walferry charts/walferry --namespace $SYSTEM --create-namespace --wait"
  installed=yes
  helm install walferry "$here/../charts/walferry" --namespace "$SYSTEM" --create-namespace --wait --timeout 2m "${tag[@]}" >"$work/helm.log"
  kubectl get pods --namespace "$SYSTEM" | indented
}

# Writes config/samples/quickstart with the tour's own databases and credentials.
write_overlay() {
  cp -r "$here/../config/samples/quickstart" "$work/quickstart"
  mkdir "$work/shop"
  cat >"$work/shop/kustomization.yaml" <<YAML
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: $NAMESPACE
resources: [../quickstart]
patches:
- patch: |
    apiVersion: walferry.dev/v1alpha1
    kind: ReplicationPeer
    metadata: {name: app}
    spec: {postgres: {host: "$address", port: $pg_port, database: shop}}
- patch: |
    apiVersion: walferry.dev/v1alpha1
    kind: ReplicationPeer
    metadata: {name: analytics}
    spec: {clickhouse: {url: "http://$address:$ch_port", database: app}}
- patch: |
    apiVersion: v1
    kind: Secret
    metadata: {name: app-db}
    stringData: {username: shop, password: shop}
- patch: |
    apiVersion: v1
    kind: Secret
    metadata: {name: warehouse}
    stringData: {username: limited, password: limited-test}
YAML
}

# Shows `kubectl get mirror --watch` until the Mirror meets the condition.
watch_until() { # CONDITION
  local started watcher; started=$(now_ms)
  shown "kubectl get mirror shop --watch"
  kubectl get mirror shop --namespace "$NAMESPACE" --watch > >(indented) 2>/dev/null &
  watcher=$!
  kubectl wait mirror/shop --namespace "$NAMESPACE" --for="$1" --timeout=2m >"$work/wait.log"
  took=$(($(now_ms) - started))
  sleep 0.3 # the watch prints its last line a little later
  kill "$watcher"
  wait "$watcher" 2>/dev/null || true
}

mirror_shop() {
  step "Apply a Mirror, its two peers and their Secrets"
  note "config/samples/quickstart, with host, port and credentials of the two servers above:"
  write_overlay
  grep -v '^#' "$work/quickstart/mirror.yaml" | indented
  shown "kubectl create namespace $NAMESPACE"
  kubectl create namespace "$NAMESPACE" | indented
  shown "kubectl apply --server-side -k $work/shop"
  kubectl apply --server-side -k "$work/shop" | indented
  watch_until condition=Ready
  done_with "Ready after $took ms, with $(clickhouse 'SELECT (SELECT count() FROM users) + (SELECT count() FROM orders)') rows copied"

  step "Look at its state"
  shown "kubectl describe mirror shop"
  kubectl describe mirror shop --namespace "$NAMESPACE" | indented
  shown "kubectl get replicationpeers,deployments,pods"
  kubectl get replicationpeers,deployments,pods --namespace "$NAMESPACE" | indented
}

change_it() {
  step "Changes arrive"
  live "INSERT a user with emoji, JSON and an array" \
    "INSERT INTO users (id, name, email, settings, tags) VALUES (20001, 'Zoë 🚲', 'zoe@example.com', '{\"theme\": \"dark\"}', '{new,vip}')" \
    "SELECT name, JSONExtractString(settings, 'theme'), arrayStringConcat(tags, '+') FROM users FINAL WHERE id = 20001 FORMAT TSVRaw" $'Zoë 🚲\tdark\tnew+vip'
  live "UPDATE 400 orders in one statement" "UPDATE orders SET state = 'sent' WHERE product_id BETWEEN 5 AND 14" \
    "SELECT countIf(state = 'sent') = count() AND count() = 400 FROM orders FINAL WHERE product_id BETWEEN 5 AND 14" 1
  live "DELETE the orders of user 42" "DELETE FROM orders WHERE user_id = 42" "SELECT count() FROM orders FINAL WHERE user_id = 42" 0

  step "Add a table while the others stream"
  local patch='[{"op": "add", "path": "/spec/tables/-", "value": {"schema": "public", "name": "events"}}]'
  shown "kubectl patch mirror shop --type json --patch '$patch'"
  kubectl patch mirror shop --namespace "$NAMESPACE" --type json --patch "$patch" | indented
  watch_until "jsonpath={.status.tables.streaming}=3"
  done_with "$(clickhouse 'SELECT count() FROM events') events copied after $took ms"
  live "DELETE the events of user 42" "DELETE FROM events WHERE user_id = 42" "SELECT count() FROM events FINAL WHERE user_id = 42" 0
}

suggest() {
  step "What to try next"
  cat <<TRY
   in another terminal
              export KUBECONFIG=$KUBECONFIG PATH=\$PATH${PATH#"$path_before"}
              kubectl config set-context --current --namespace $NAMESPACE
   write      PGPASSWORD=shop psql -h 127.0.0.1 -p $pg_port -U shop -d shop
              UPDATE users SET name = 'You' WHERE id = 1;
   read       curl 'http://127.0.0.1:$ch_port/?user=admin&password=clickhouse-test&database=app' --data-binary \\
                'SELECT id, name, tags FROM users FINAL WHERE id IN (1, 20001) FORMAT PrettyCompact'
   learn      kubectl explain mirror.spec.tables
   pause      kubectl patch mirror shop --type merge --patch '{"spec": {"suspend": true}}'; kubectl describe mirror shop
   break      PGPASSWORD=shop psql -h 127.0.0.1 -p $pg_port -U shop -d shop -c 'ALTER TABLE users RENAME TO people'
              kubectl get mirror shop --watch
   kill       kubectl delete pod --selector app.kubernetes.io/component=replicator
   figures    kubectl get --raw /api/v1/namespaces/$NAMESPACE/pods/\$(kubectl get pods --output jsonpath='{.items[0].metadata.name}'):9464/proxy/metrics
   logs       kubectl logs --follow deployment/walferry-shop
              kubectl logs --follow deployment/walferry --namespace $SYSTEM
TRY
}

# Prints walferry's slots and publications at the source.
at_source() { superuser shop -c "SELECT 'slot ' || slot_name FROM pg_replication_slots UNION ALL SELECT 'publication ' || pubname FROM pg_publication"; }

finish() {
  step "Delete the Mirror"
  note "at the source before the deletion:"
  at_source | indented | indented
  shown "kubectl delete mirror shop"
  local started; started=$(now_ms)
  kubectl delete mirror shop --namespace "$NAMESPACE" --timeout=2m | indented
  done_with "gone after $(($(now_ms) - started)) ms"
  local left; left=$(at_source)
  [ -z "$left" ] || fail "the source still has $left"
  done_with "slot and publication are removed from the source"
  [ "$(clickhouse "SELECT count() FROM users FINAL")" = "$(sql -c 'SELECT count(*) FROM users')" ] || fail "ClickHouse and PostgreSQL have different numbers of rows"
  done_with "the tables in ClickHouse stay: $(clickhouse "SELECT arrayStringConcat(groupArray(name), ', ') FROM (SELECT name FROM system.tables WHERE database = 'app' AND name NOT LIKE '\\\\_%' ORDER BY name)")"

  step "Uninstall"
  shown "kubectl delete mirrors,replicationpeers --all; helm uninstall walferry --namespace $SYSTEM; kubectl delete crd ${CRDS[*]}"
  uninstall >"$work/uninstall.log"
  done_with "walferry is removed from the cluster"
}

tour() {
  if [ -n "${E2E_KUBECONFIG:-}" ]; then use_cluster; else start_cluster; fi
  step "Two servers outside of it, at an address that its pods reach"
  start_servers "$address"
  step "An application's database"
  make_shop
  install_operator
  mirror_shop
  change_it
  suggest
  end_with finish
}
