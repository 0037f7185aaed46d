#!/bin/sh
# A named consumer in shell: runs `handle` for every completion and acknowledges it after that.
#
#   usage: consume.sh SOCKET NAME
#   needs: curl 7.50 or newer, jq
#
# At least once: if this is killed between `handle` and the acknowledgement, the event comes again,
# with the same id. `settled consume NAME -- COMMAND` does all of this and retries, parks and stops
# gracefully as well; this shows what the protocol takes.
set -eu
socket=$1 name=$2
consumer=http://feed/v1/consumers/$name

handle() { # the event as JSON in $1
    printf '%s\n' "$1" | jq -r '"\(.subject) \(.data.outcome)"'
}

request() { curl -sS --fail-with-body --unix-socket "$socket" "$@"; }

# Making it is idempotent.
until request -X PUT -d '{"start":"earliest"}' "$consumer" >/dev/null; do sleep 1; done

while :; do
    # Without fail, curl would pass an error's JSON on as if it were an event.
    curl -sN --fail --unix-socket "$socket" "$consumer/events?follow=1" |
    while IFS= read -r line; do
        case $(printf '%s\n' "$line" | jq -r .type) in
        settled.run.*) handle "$line" || break ;; # not acknowledged: it comes again
        settled.feed.bookmark) ;; # nothing for us up to here: worth acknowledging too
        *) continue ;;
        esac
        cursor=$(printf '%s\n' "$line" | jq -r .cursor)
        request -X POST "$consumer/ack?cursor=$cursor" >/dev/null || break
    done || :
    sleep 1 # the daemon is restarting, or somebody else reads under this name
done
