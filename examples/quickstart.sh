#!/usr/bin/env bash
# The quickstart's job by curl: post it, watch it, print its report as JSON. Needs a running service: make serve.
# Usage: examples/quickstart.sh [SPEC]
set -euo pipefail

spec=${1:-examples/quickstart.yaml}
url=${SLEDDOG_URL:-http://127.0.0.1:8700}
key=${SLEDDOG_API_KEY:-$(cat .sleddog/api-key)}
bin=.venv/bin

call() {
  curl --silent --show-error --fail-with-body --header "Authorization: Bearer $key" "$@"
}

field() { # of a JSON object on standard input
  "$bin/python" -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

# The wire carries JSON with absolute URIs. The key makes the request safe to repeat: the same key, the same job.
job=$("$bin/sleddog" validate "$spec" |
  call "$url/v1/jobs" --header 'Content-Type: application/json' --header "Idempotency-Key: quickstart-$$-$(date +%s)" \
    --data-binary @- | field id)
echo "posted as $job" >&2

status=queued
until [[ $status == succeeded ]]; do
  sleep 2
  answer=$(call "$url/v1/jobs/$job")
  status=$(field status <<<"$answer")
  echo "$status" >&2
  if [[ $status == failed || $status == cancelled ]]; then
    field error <<<"$answer" >&2
    exit 1
  fi
done

call "$url/v1/jobs/$job/metrics?limit=3" >&2 # likewise: events, logs; a POST to cancel ends a running job
echo >&2
call "$url/v1/jobs/$job/report"
