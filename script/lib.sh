# Shared by the scripts beside it; sourced, never run. Sets the folder, the environment that makes every
# step reuse one build, and a few words for talking to the person who waits.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# One target folder and one profile for cargo, nextest, clippy and maturin. The two PYO3 variables are what
# maturin sets for itself: without them each change between cargo and maturin would build PyO3 anew.
export CARGO_TARGET_DIR="$root/target"
export PYO3_PYTHON="$root/.venv/bin/python"
export PYO3_BUILD_EXTENSION_MODULE=1
export PIP_DISABLE_PIP_VERSION_CHECK=1
export PATH="$root/.venv/bin:$root/target/tools/bin:$PATH"

python="$root/.venv/bin/python"
logs="$root/target/logs"
mkdir -p "$logs"

say() { printf '%s\n' "$*"; }

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

# step WORDS -- COMMAND: runs the command in the open, says how long it took and passes its status on.
step() {
    local words=$1 started=$SECONDS status=0
    shift 2
    say "== $words"
    "$@" || status=$?
    say "   $((SECONDS - started)) s: $words"
    return "$status"
}

# quietly WORDS -- COMMAND: as `step`, but the output goes to a file and is shown only on failure.
quietly() {
    local words=$1 started=$SECONDS
    shift 2
    local log="$logs/${words//[^a-zA-Z0-9]/-}.log"
    say "== $words"
    if ! "$@" >"$log" 2>&1; then
        tail -n 60 "$log" >&2
        fail "failed: $words (all of its output: $log)"
    fi
    say "   $((SECONDS - started)) s: $words"
}

# install_tool CRATE@VERSION: into target/tools, once. Not optimised: that takes four times as long as it ever saves.
install_tool() {
    quietly "building $1, a minute, once" -- env CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR="$root/target/tools/build" \
        cargo install --debug --locked --root target/tools "$1"
    rm -rf target/tools/build
}
