#!/bin/sh
# Puts Apache Kafka's jars, named by pom.xml beside this script, where the tests look for them; prints that directory.
#
# Installs a JDK (the Spring test compiles) and Maven with apt-get when they are missing, as root or through sudo.
# Does nothing the second time. The jars live outside the tree, so that a clean clone finds them again.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
version=$(sed -n 's:.*<kafka.version>\(.*\)</kafka.version>.*:\1:p' "$here/pom.xml")
target="${XDG_CACHE_HOME:-$HOME/.cache}/driftline/kafka-$version"

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

# The checksum of pom.xml is the mark of a finished install: an edited pom installs again.
mark=$(cksum <"$here/pom.xml")
if [ "$(cat "$target/.complete" 2>/dev/null)" = "$mark" ] && command -v javac >/dev/null && command -v mvn >/dev/null; then
    echo "$target"
    exit 0
fi

missing=""
command -v javac >/dev/null || missing="default-jdk-headless"
command -v mvn >/dev/null || missing="$missing maven"
if [ -n "$missing" ]; then
    command -v apt-get >/dev/null || fail "missing: $missing; no apt-get here: install a JDK 17 or newer and Maven, then run again"
    as_root=""
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "missing: $missing; neither root nor sudo: install them by hand, then run again"
        as_root="sudo"
    fi
    echo "install.sh: installing $missing with apt-get" >&2
    $as_root apt-get update -qq >&2 || fail "apt-get update failed; missing: $missing"
    # shellcheck disable=SC2086  # two words are two packages
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2 ||
        fail "apt-get could not install: $missing"
fi

major=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
[ "${major:-0}" -ge 17 ] || fail "Java ${major:-of unknown version} is installed; Kafka $version needs Java 17 or newer"

mkdir -p "$(dirname "$target")"
fresh=$(mktemp -d "$target.XXXXXX")
trap 'rm -rf "$fresh"' EXIT
echo "install.sh: fetching Kafka $version from Maven's repository" >&2
mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$fresh" >&2 ||
    fail "Maven could not fetch Kafka $version; its reason stands above"
echo "$mark" >"$fresh/.complete"
chmod 755 "$fresh"
rm -rf "$target"
mv "$fresh" "$target" 2>/dev/null || [ -f "$target/.complete" ] || fail "could not move the jars to $target"
echo "$target"
