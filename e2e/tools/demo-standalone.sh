# shellcheck shell=bash
# The tour of the standalone program, sourced by e2e/demo.
# shellcheck disable=SC2154  # e2e/demo sets these variables

runner=

tour_failed() { :; }

tour_ended() {
  if [ -n "$runner" ] && kill -0 "$runner" 2>/dev/null; then kill "$runner" 2>/dev/null || true; wait "$runner" 2>/dev/null || true; fi
}

find_program() {
  step "The program"
  if [ -n "${WALFERRY_BIN:-}" ]; then
    walferry=$WALFERRY_BIN
  else
    # shellcheck disable=SC1091
    command -v cargo >/dev/null || { [ ! -e "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"; }
    note "building the release with cargo; the first time takes a few minutes"
    (cd "$here/.." && cargo build --release --quiet --bin walferry)
    walferry=${CARGO_TARGET_DIR:-$here/../target}/release/walferry
    walferry=$(realpath "$walferry")
  fi
  done_with "$("$walferry" --version)"
}

write_mirror() {
  cat >"$work/mirror.yaml" <<YAML
apiVersion: walferry.dev/v1alpha1
kind: ReplicationPeer
metadata: {name: shop}
spec:
  postgres: {host: 127.0.0.1, port: $pg_port, database: shop, credentialsSecretRef: {name: shop-login}, tls: {mode: Disable}}
---
apiVersion: walferry.dev/v1alpha1
kind: ReplicationPeer
metadata: {name: analytics}
spec:
  clickhouse: {url: "http://127.0.0.1:$ch_port", database: app, credentialsSecretRef: {name: analytics-login}}
---
apiVersion: walferry.dev/v1alpha1
kind: Mirror
metadata: {name: shop}
spec:
  sourceRef: {name: shop}
  destinationRef: {name: analytics}
  tables:
  - {schema: public, name: users}
  - {schema: public, name: products}
  - {schema: public, name: orders}
  - {schema: public, name: events}
---
apiVersion: v1
kind: Secret
metadata: {name: shop-login}
stringData: {username: shop, password: shop}
---
apiVersion: v1
kind: Secret
metadata: {name: analytics-login}
stringData: {username: limited, password: limited-test}
YAML
}

start_streaming() {
  step "Stream every change"
  shown "walferry run -f mirror.yaml"
  # In its own session, so that Ctrl-C reaches only this script, which then stops everything in order.
  setsid "$walferry" run -f "$work/mirror.yaml" --http 127.0.0.1:0 --log-format text >"$work/walferry.log" 2>&1 </dev/null &
  runner=$!
  status_port=
  for ((i = 0; i < 600; i++)); do
    kill -0 "$runner" 2>/dev/null || { echo "walferry ended" >&2; exit 1; }
    status_port=$(grep -ioE 'http[^ ]*.*127\.0\.0\.1:[0-9]+' "$work/walferry.log" | grep -oE '127\.0\.0\.1:[0-9]+' | head -n 1 | cut -d: -f2 || true)
    [ -n "$status_port" ] && curl -sf "http://127.0.0.1:$status_port/readyz" >/dev/null && break
    sleep 0.1
  done
  [ -n "$status_port" ] || { echo "walferry did not print the address of /status" >&2; exit 1; }
}

tour() {
  find_program
  step "Two servers"
  start_servers
  step "An application's database"
  make_shop
  write_mirror

  step "Check the prerequisites"
  shown "walferry check -f mirror.yaml"
  "$walferry" check -f "$work/mirror.yaml"

  step "Copy the existing rows"
  shown "walferry run -f mirror.yaml --until-caught-up"
  started=$(now_ms)
  "$walferry" run -f "$work/mirror.yaml" --until-caught-up --http 127.0.0.1:0
  done_with "$(clickhouse 'SELECT formatReadableQuantity((SELECT count() FROM users) + (SELECT count() FROM products) + (SELECT count() FROM orders) + (SELECT count() FROM events))') rows in $(($(now_ms) - started)) ms, start to finish"

  start_streaming
  live "INSERT a user with emoji, JSON and an array" \
    "INSERT INTO users (id, name, email, settings, tags) VALUES (20001, 'Zoë 🚲', 'zoe@example.com', '{\"theme\": \"dark\"}', '{new,vip}')" \
    "SELECT name, JSONExtractString(settings, 'theme'), arrayStringConcat(tags, '+') FROM users FINAL WHERE id = 20001 FORMAT TSVRaw" $'Zoë 🚲\tdark\tnew+vip'
  live "UPDATE 400 orders of product 7 and its neighbours in one statement" \
    "UPDATE orders SET state = 'sent' WHERE product_id BETWEEN 5 AND 14" \
    "SELECT countIf(state = 'sent') = count() AND count() = 400 FROM orders FINAL WHERE product_id BETWEEN 5 AND 14" 1
  live "DELETE the events of user 42" "DELETE FROM events WHERE user_id = 42" "SELECT count() FROM events FINAL WHERE user_id = 42" 0
  live "UPDATE a primary key: product 1000 becomes 5000, its orders follow" \
    "UPDATE products SET id = 5000 WHERE id = 1000" \
    "SELECT groupArray(id), (SELECT count() FROM orders FINAL WHERE product_id = 5000) FROM products FINAL WHERE id IN (1000, 5000)" $'[5000]\t40'
  live "A transaction that moves 10,000 rows" \
    "BEGIN; INSERT INTO events (user_id, kind, payload, at) SELECT i, 'bulk', '{}', now() FROM generate_series(1, 10000) i; UPDATE users SET settings = settings || '{\"seen\": true}' WHERE id = 1; COMMIT" \
    "SELECT count() FROM events FINAL WHERE kind = 'bulk'" 10000
  live "ALTER TABLE … ADD COLUMN, then use it" \
    "ALTER TABLE users ADD country text DEFAULT 'NL'; UPDATE users SET country = 'PT' WHERE id = 20001" \
    "SELECT country FROM users FINAL WHERE id = 20001" PT
  live "TRUNCATE and refill" "BEGIN; TRUNCATE events; INSERT INTO events (user_id, kind, at) VALUES (1, 'fresh', now()); COMMIT" "SELECT count() FROM events FINAL" 1

  step "Compare both sides"
  shown "walferry verify -f mirror.yaml"
  "$walferry" verify -f "$work/mirror.yaml"

  step "What to try next"
  cat <<TRY
   write      PGPASSWORD=shop psql -h 127.0.0.1 -p $pg_port -U shop -d shop
              UPDATE users SET name = 'You' WHERE id = 1;
   read       curl 'http://127.0.0.1:$ch_port/?user=admin&password=clickhouse-test&database=app' --data-binary \\
                'SELECT id, name, tags FROM users FINAL WHERE id IN (1, 20001) FORMAT PrettyCompact'
   watch      curl -s http://127.0.0.1:$status_port/status | python3 -m json.tool
   compare    $walferry verify -f $work/mirror.yaml
   the file   $work/mirror.yaml
   clean up   $walferry teardown -f $work/mirror.yaml
TRY

  end_with finish
}

finish() {
  step "Stop and clean up"
  kill "$runner"
  wait "$runner"
  runner=
  done_with "walferry has shut down"
  "$walferry" teardown -f "$work/mirror.yaml"
  done_with "slot and publication are removed; the target tables stay"
}
