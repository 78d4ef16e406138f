#!/usr/bin/env bash
# Happy eyeballs against real kernels: two network namespaces, no traffic leaves them. Linux, root, iproute2, nftables.
#
#   lab.sh up | bench [-n RUNS] [-s S03,T02] [-l trio,trioconn] [--write FILE] | down | exec CMD …
#
#   he-cli  c0 <==veth==> s0  he-srv        plain path (kernel only)
#           slow0 --relay.py--> slow1       forward path of the "slow"/"loss" prefixes
#
# The kind of an address is in the address itself (port 8080 plain, 8443 TLS):
#   kind      IPv6 prefix             IPv4 range            what happens to a SYN
#   good      2001:db8:a::/64         203.0.113.1-30        accepted at once
#   blackhole 2001:db8:b::/64         203.0.113.33-62       dropped silently (nft, server side)
#   refused   2001:db8:c::/64         203.0.113.65-94       RST
#   unreach   2001:db8:e::/64         203.0.113.97-126      ICMP(v6) host unreachable from the router
#   noroute   2001:db8:f::/64         203.0.113.129-158     local `unreachable` route: connect() fails at once
#   mute      2001:db8:7::/64         203.0.113.161-190     TCP accepted, TLS never answered
#   slow N    2001:db8:d::<N>         198.18.<N/256>.<N%256> works, every client packet delayed N ms (N in decimal)
#   loss K    2001:db8:1055::<K>      198.19.0.<K>          first K SYNs of each connection are dropped, then works
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
PY=${PY:-python3}
export LAB_RUN=${LAB_RUN:-/tmp/trioconn-lab}; RUN=$LAB_RUN; C=he-cli; S=he-srv
c() { ip netns exec $C "$@"; }
s() { ip netns exec $S "$@"; }

down() {
  # only what runs inside our own two namespaces (server, DNS server, relay)
  for n in $C $S; do for p in $(ip netns pids $n 2>/dev/null); do kill "$p" 2>/dev/null || true; done; done
  ip netns del $C 2>/dev/null || true
  ip netns del $S 2>/dev/null || true
  rm -rf /etc/netns/$C
}

up() {
  down; mkdir -p "$RUN" /etc/netns/$C
  ip netns add $C; ip netns add $S
  ip link add c0 netns $C type veth peer name s0 netns $S
  for n in $C $S; do
    ip -n $n link set lo up
    ip netns exec $n sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
       net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
  done
  ip -n $C addr add 198.51.100.1/24 dev c0;  ip -n $C addr add 2001:db8:1::1/64 dev c0 nodad
  ip -n $S addr add 198.51.100.2/24 dev s0;  ip -n $S addr add 2001:db8:1::2/64 dev s0 nodad
  ip -n $C link set c0 up; ip -n $S link set s0 up
  ip -n $C route add default via 198.51.100.2 dev c0
  ip -n $C -6 route add default via 2001:db8:1::2 dev c0
  # "noroute": connect() fails synchronously in the client
  ip -n $C route add unreachable 203.0.113.128/27
  ip -n $C -6 route add unreachable 2001:db8:f::/64
  # server side: AnyIP, so no address has to be configured one by one
  for p in 203.0.113.0/24 198.18.0.0/15; do ip -n $S route add local $p dev lo; done
  for k in a b c d e 7 1055; do ip -n $S -6 route add local 2001:db8:$k::/64 dev lo; done
  s nft -f - <<'N'
table inet he {
  chain in {
    type filter hook input priority 0;
    ip  daddr 203.0.113.32/27 drop
    ip6 daddr 2001:db8:b::/64 drop
    ip  daddr 203.0.113.64/27 meta l4proto tcp reject with tcp reset
    ip6 daddr 2001:db8:c::/64 meta l4proto tcp reject with tcp reset
    ip  daddr 203.0.113.96/27 reject with icmp type host-unreachable
    ip6 daddr 2001:db8:e::/64 reject with icmpv6 type addr-unreachable
  }
}
N
  # icmp rate limits would turn "unreach" into "blackhole" under load
  s sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0 net.ipv4.icmp_msgs_per_sec=100000 || true
  # delayed path: tun device in each namespace, relay.py in between (no sch_netem in this kernel)
  c ip tuntap add dev slow0 mode tun; s ip tuntap add dev slow1 mode tun
  ip -n $C link set slow0 up; ip -n $S link set slow1 up
  ip -n $C route add 198.18.0.0/15 dev slow0 src 198.51.100.1
  for k in d 1055; do ip -n $C -6 route add 2001:db8:$k::/64 dev slow0 src 2001:db8:1::1; done
  # "unreach" takes the relay too (1 ms): with no latency at all the ICMPv6 error comes back while
  # connect() still holds the socket lock, and Linux then only notices it at the 1 s SYN retransmission
  ip -n $C route add 203.0.113.96/27 dev slow0 src 198.51.100.1
  ip -n $C -6 route add 2001:db8:e::/64 dev slow0 src 2001:db8:1::1
  setsid "$PY" "$HERE/relay.py" $C $S </dev/null >"$RUN/relay.log" 2>&1 &
  s setsid "$PY" "$HERE/server.py" </dev/null >"$RUN/server.log" 2>&1 &
  echo "nameserver 127.0.0.1" >/etc/netns/$C/resolv.conf
  echo "127.0.0.1 localhost"  >/etc/netns/$C/hosts
  ok=; for i in $(seq 50); do c "$PY" - <<'P' 2>/dev/null && ok=1 && break || sleep 0.1
import socket; socket.create_connection(("2001:db8:a::1",8080),1); socket.create_connection(("198.18.0.1",8080),1)
P
  done
  [ -n "$ok" ] || { echo "the lab did not come up:" >&2; tail -n 3 "$RUN"/*.log >&2; exit 1; }
  echo "up: $C <-> $S"
}

dns() { # start the scriptable DNS server on 127.0.0.1:53 of the client namespace
  for p in $(ip netns pids $C); do grep -q dns_server.py "/proc/$p/cmdline" && kill "$p" && sleep 0.2; done || true
  c setsid "$PY" "$HERE/dns_server.py" </dev/null >"$RUN/dns.log" 2>&1 & sleep 1
}

case "${1:-}" in
  up) up;; down) down;; dns) dns;;
  exec) shift; exec ip netns exec $C "$@";;          # run anything as the client
  sexec) shift; exec ip netns exec $S "$@";;
  bench) shift; dns; c "$PY" "$HERE/bench.py" "$@";;       # needs: up
  status) ip netns list; ip -n $C -br a; ip -n $C r; ip -n $C -6 r | grep -v fe80; s nft list ruleset;;
  *) echo "usage: $0 up|down|status|bench [opts]|dns|exec CMD...|sexec CMD..."; exit 2;;
esac
