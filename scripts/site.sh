#!/usr/bin/env bash
# The documents as a site in target/site: the pages in docs/, beside them the files of the repository that they link to. Fails
# where a link leads nowhere. Needs mdbook (`cargo install --locked mdbook`).
set -euo pipefail
cd "$(dirname "$0")/.."
site=$(realpath -m "${CARGO_TARGET_DIR:-target}/site")

command -v mdbook >/dev/null || { echo 'site: mdbook is not here: cargo install --locked mdbook' >&2; exit 1; }
rm -rf "$site"
mdbook build --dest-dir "$site/docs"
python3 - "$site" <<'PY'
import re, shutil, sys
from pathlib import Path

site, nowhere, count = Path(sys.argv[1]), [], 0
for page in sorted((site / "docs").glob("*.html")):
    for link in set(re.findall(r'(?:href|src)="([^"#?:]+)["#?]', page.read_text(encoding="utf-8"))):
        count += 1
        target = (page.parent / link).resolve()
        # The page that tells of a missing one names the site's root.
        if target.exists() or link == "/":
            continue
        source = Path(target.relative_to(site))
        if link.startswith("../") and source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        else:
            nowhere.append(f"{page.name}: {link}")
if nowhere:
    sys.exit("links that lead nowhere:\n" + "\n".join(nowhere))
print(f"{site}/docs/index.html: {count} links, all of them lead somewhere")
PY
