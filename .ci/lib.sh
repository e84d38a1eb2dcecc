# What the scripts of this folder share. To be sourced: it enters a copy of what git tracks and deletes it at the end.
set -euo pipefail
export MPLBACKEND=Agg
cd "$(dirname "${BASH_SOURCE[0]}")/.."
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
echo "testing $(git rev-parse --short HEAD)"
[ -z "$(git status --porcelain)" ] || echo "what is not committed is not tested"
git archive HEAD | tar -x -C "$copy"
cd "$copy"

step() { printf '\n== %s\n' "$*"; }
stop() { echo "$*"; exit 1; }
expect() { # expect PATTERN COMMAND...: run it, show what it prints, and require a line that matches
  local pattern=$1; shift
  step "$@"
  "$@" 2>&1 | tee "$copy/printed"
  grep -Eq -- "$pattern" "$copy/printed" || stop "expected a line that matches: $pattern"
}
fails() { # fails STATUS PATTERN COMMAND...: it must exit with STATUS and print exactly one line, matching PATTERN
  local status=$1 pattern=$2 found=0; shift 2
  step "$@"
  "$@" >"$copy/printed" 2>&1 || found=$?
  cat "$copy/printed"
  [ "$found" -eq "$status" ] || stop "expected exit status $status, got $found"
  grep -Eq -- "$pattern" "$copy/printed" || stop "expected a line that matches: $pattern"
  [ "$(wc -l <"$copy/printed")" -eq 1 ] || stop "expected one line"
}
