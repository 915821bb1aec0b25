"""Sends what ordinary clients do not, built by scapy, and prints a line for each case: its name, and `answered` if the answer
came from the VIP as it should, else `silent`. Arguments: the VIPs, IPv4 and IPv6, and the port of a service that echoes."""

import sys

from scapy.all import (ICMP, IP, TCP, UDP, AsyncSniffer, ICMPv6EchoReply, ICMPv6EchoRequest, IPOption_NOP, IPOption_RR, IPv6,
                       IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, PadN, Raw, fragment, fragment6, send)

V4, V6, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
PAYLOAD = bytes(i % 251 for i in range(1200))
SECONDS = 5
source = 40000


def udp(ip, payload=b"hello"):
    global source
    source += 1
    return ip / UDP(sport=source, dport=PORT) / Raw(payload)


def echoed(sent, payload=b"hello"):
    port = sent[UDP].sport
    return lambda got: UDP in got and got[UDP].dport == port and got[UDP].sport == PORT and bytes(got[UDP].payload) == payload


def case(name, packets, is_answer, seconds=SECONDS):
    vip = V6 if IPv6 in packets[0] else V4
    layer = IPv6 if vip == V6 else IP
    wanted = lambda got: layer in got and got[layer].src == vip and is_answer(got)
    sniffer = AsyncSniffer(iface="eth0", lfilter=wanted, count=1, timeout=seconds, started_callback=lambda: [
        send(packet, verbose=False) for packet in packets])
    sniffer.start()
    sniffer.join()
    print(name, "answered" if sniffer.results else "silent", flush=True)


def udp_case(name, ip):
    packet = udp(ip)
    case(name, [packet], echoed(packet))


udp_case("udp4", IP(dst=V4))
udp_case("udp6", IPv6(dst=V6))
udp_case("options4", IP(dst=V4, options=[IPOption_NOP()] * 8))
udp_case("record-route4", IP(dst=V4, options=[IPOption_RR(length=15, routers=["0.0.0.0"] * 3)]))
padding = [PadN(optdata=b"\0" * 4)]
udp_case("destination-options6", IPv6(dst=V6) / IPv6ExtHdrDestOpt(options=padding))
udp_case("hop-by-hop6", IPv6(dst=V6) / IPv6ExtHdrHopByHop(options=padding))
udp_case("two-headers6", IPv6(dst=V6) / IPv6ExtHdrHopByHop(options=padding) / IPv6ExtHdrDestOpt(options=padding))

whole = udp(IP(dst=V4, id=7, flags=0), PAYLOAD)
case("fragments4", fragment(whole, fragsize=400), echoed(whole, PAYLOAD))
whole = udp(IPv6(dst=V6) / IPv6ExtHdrFragment(id=7), PAYLOAD)
case("fragments6", fragment6(whole, 600), echoed(whole, PAYLOAD))
whole = udp(IP(dst=V4, id=8, flags=0), PAYLOAD)
case("fragments4-last-first", fragment(whole, fragsize=400)[::-1], echoed(whole, PAYLOAD), seconds=1)

for name, ip in [("syn4", IP(dst=V4)), ("syn6", IPv6(dst=V6))]:
    syn = ip / TCP(sport=41000, dport=PORT, flags="S", seq=1000)
    case(name, [syn], lambda got: TCP in got and got[TCP].flags == "SA" and got[TCP].ack == 1001)
ping = IP(dst=V4) / ICMP(id=9, seq=3) / Raw(b"ping")
case("ping4", [ping], lambda got: ICMP in got and got[ICMP].type == 0 and (got[ICMP].id, got[ICMP].seq) == (9, 3))
ping = IPv6(dst=V6) / ICMPv6EchoRequest(id=9, seq=3, data=b"ping")
case("ping6", [ping], lambda got: ICMPv6EchoReply in got and got[ICMPv6EchoReply].data == b"ping")
