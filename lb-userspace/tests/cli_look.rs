//! `lbctl explain` and `lbctl trace`, end to end against the real server.

mod support;

use lb_userspace::explain::pcap;
use serde_json::Value;
use std::fs;
use support::{FakeLbd, lbctl::lbctl};

#[test]
fn an_explanation_has_a_paragraph_for_each_stage() {
    let lbd = FakeLbd::start();
    let run = lbctl(&lbd, "explain tcp 198.51.100.9:40000 192.0.2.1:80");
    let expected = "\
packet in   54 bytes on eth0
            Ethernet, in
flow        tcp 198.51.100.9:40000 > 192.0.2.1:80
service     www, index 1
hash        00000000deadbeef, of 5-tuple
slot        7 of 65537: moved (word 0001000002000001)
            known flows go where their entry says
            new flows: www/web-1; old flows: www/web-2
flow table  the packet goes where the entry says
            entry: www/web-2, or else www/web-1, last seen 3 s ago, closing
backend     www/web-2, 198.51.100.12, mode ipip, index 2
            up, gets new flows
next hop    02:00:00:00:00:07 on eth0
second      www/web-1, 198.51.100.11, index 1
            named in the GUE header: a backend that has no socket of the flow hands the packet on to it
size        40 + 20 = 60 bytes, which fits in the MTU 1500
packet out  74 bytes
            Ethernet, out
            0000  0a0a0a0a 0a0a0a0a 0a0a0a0a 0a0a0a0a 0a0a0a0a 0a0a0a0a 0a0a0a0a 0a0a0a0a
            0020  0a0a0a0a 0a0a0a0a 0a0a0a0a 0a0a0a0a 0a0a0a0a 0a0a0a0a 0a0a0a0a 0a0a0a0a
            0040  0a0a0a0a 0a0a0a0a 0a0a
verdict     forwarded (forward)
            Sent to a backend.
";
    assert_eq!((run.code, run.stdout.as_str()), (0, expected), "{run:?}");
    let json = lbctl(
        &lbd,
        "--output json explain udp 198.51.100.9:40000 192.0.2.1:80",
    )
    .stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["slot"]["new_owner"], "www/web-1");
    assert_eq!(json["verdict"]["name"], "forwarded");
}

#[test]
fn a_packet_is_words_or_a_capture() {
    let lbd = FakeLbd::start();
    for wrong in [
        "explain",
        "explain tcp 198.51.100.9:40000",
        "explain --packets 3",
        "explain tcp 198.51.100.9:1 192.0.2.1:80 --pcap x",
        "trace --sample x",
    ] {
        assert_eq!(lbctl(&lbd, wrong).code, 2, "{wrong}");
    }
    let damaged = lbd.directory().join("damaged");
    fs::write(&damaged, "no capture").unwrap();
    let run = lbctl(&lbd, &format!("explain --pcap {}", damaged.display()));
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("is neither pcap nor pcapng"), "{run:?}");
}

#[test]
fn a_trace_prints_a_line_a_packet_and_writes_a_capture() {
    let lbd = FakeLbd::start();
    let file = lbd.directory().join("trace.pcapng");
    let run = lbctl(
        &lbd,
        &format!("trace --service www --count 2 --pcap {}", file.display()),
    );
    let expected = "\
1970-01-01T00:00:01.000000Z drop_no_backend    tcp 198.51.100.9:40000 > 192.0.2.1:80 for www, 54 bytes
1970-01-01T00:00:02.000000Z drop_no_backend    tcp 198.51.100.9:40000 > 192.0.2.1:80 for www, 54 bytes
";
    assert_eq!((run.code, run.stdout.as_str()), (0, expected), "{run:?}");
    let packets = pcap::read(&fs::read(&file).unwrap(), 9).unwrap();
    assert_eq!(packets.len(), 2);
    for packet in packets {
        assert_eq!((packet.interface, packet.bytes.len()), (0, 54));
        assert_eq!(packet.comment, "drop_no_backend");
    }
    // The fake ends its trace after six.
    let run = lbctl(&lbd, "trace --service www");
    assert_eq!((run.code, run.stdout.lines().count()), (1, 6));
    assert!(run.stderr.contains("lbd ended the trace"), "{run:?}");
}
