#!/bin/bash
# Makes its namespaces (mount, UTS, PID) a machine, then serves.
# usage: node.sh NAME FOLDER COMMAND…
#  - a host name: SkyPilot finds a node's rank by the address of its host name
#  - /etc/hosts: so that the names of all nodes have addresses
#  - /tmp: SkyPilot's runtime is /tmp/<cluster>, which two nodes must not share
#  - FOLDER/etc/visible, lines "BLOCKED<tab>PATH": what jobs must reach below a folder that others may not enter (a
#    home), or below /tmp. In this namespace alone an empty folder lies over BLOCKED, and PATH in it.
set -eu
name="$1" folder="$2"
shift 2

hostname "$name"
mount --bind "$folder/etc/hosts" /etc/hosts

staging="$folder/spool/staging"
number=0
while IFS=$'\t' read -r _ path; do
  mkdir -p "$staging/$number"
  mount --bind "$path" "$staging/$number"
  number=$((number + 1))
done < "$folder/etc/visible"
mount --bind "$folder/tmp/$name" /tmp
cut -f 1 "$folder/etc/visible" | sort -u | grep -vx /tmp | while read -r blocked; do
  mount -t tmpfs -o mode=755 tmpfs "$blocked"
done
number=0
while IFS=$'\t' read -r _ path; do
  mkdir -p "$path"
  mount --bind "$staging/$number" "$path"
  number=$((number + 1))
done < "$folder/etc/visible"

exec "$@"
