#!/usr/bin/env bash
# The page's tests look at it in a real Chromium: use the one that is there, or install it, or say what to do.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
  command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium || apt-get install -y -qq chromium-browser
else
  echo "The tests of the page need Chromium or Chrome. Install it (Debian: sudo apt-get install chromium), then try again." >&2
  exit 1
fi
