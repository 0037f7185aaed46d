#!/bin/sh
# A named consumer in shell: runs `handle` for every completion, then acknowledges it.
#
#   usage: consume.sh SOCKET NAME
#   needs: curl 7.50 or newer, jq
#
# At least once: if the script is killed between `handle` and the acknowledgement, the event comes
# again with the same id. `settled consume NAME -- COMMAND` does the same and also retries, parks
# and stops gracefully. This script shows the protocol.
set -eu
socket=$1 name=$2
consumer=http://feed/v1/consumers/$name

handle() { # the event as JSON in $1
    printf '%s\n' "$1" | jq -r '"\(.subject) \(.data.outcome)"'
}

request() { curl -sS --fail-with-body --unix-socket "$socket" "$@"; }

# The PUT is idempotent: it creates the consumer, or finds it.
until request -X PUT -d '{"start":"earliest"}' "$consumer" >/dev/null; do sleep 1; done

while :; do
    # Without --fail, curl would print an error's JSON as if it were an event.
    curl -sN --fail --unix-socket "$socket" "$consumer/events?follow=1" |
    while IFS= read -r line; do
        case $(printf '%s\n' "$line" | jq -r .type) in
        settled.run.*) handle "$line" || break ;; # not acknowledged: it comes again
        settled.feed.bookmark) ;; # no matching record up to here: acknowledge it too
        *) continue ;;
        esac
        cursor=$(printf '%s\n' "$line" | jq -r .cursor)
        request -X POST "$consumer/ack?cursor=$cursor" >/dev/null || break
    done || :
    sleep 1 # the daemon restarts, or another reader has this name
done
