//! The decapsulator's second chance, against real sockets: what this host has no socket for goes on to the owner that the
//! packet names, byte for byte, by XDP and by traffic control; all else is delivered.

use anyhow::{Context, Result, ensure};
use etherparse::{Ipv4Header, TcpHeader};
use lb_common::decap::Reason;
use lb_tests::{
    fixture::{NEXT_HOP, ip, v4, v6},
    fixtures::{
        gue::{self, expected},
        icmp::{about, reply},
        second::naming,
    },
    network,
    packet::{
        BALANCER_MAC, ETHERNET, Packet, Protocol, ethernet,
        flag::{ACK, FIN, RST, SYN},
    },
    prog_run::{DecapRules, Decapsulator, XdpAction},
    require,
};
use std::{
    fs,
    io::Read,
    mem,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::Command,
    time::Duration,
};
use tokio::net::TcpSocket;

/// Outer source, outer destination (this host) and the second owner.
const ENDS: [(&str, &str, &str); 2] = [
    ("10.0.0.2", "10.0.1.7", "10.0.1.8"),
    ("fd00::2", "fd00:1::7", "fd00:1::8"),
];
const SECOND_PORT: u16 = 6_088;
const TC_ACT_REDIRECT: u32 = 7;

/// A network namespace with the client's and the service's addresses of both families, on `lo`.
fn host() -> Result<()> {
    network::enter()?;
    run("link set lo up")?;
    for address in ["203.0.113.1/32", "198.51.100.9/32"] {
        run(&format!("address add {address} dev lo"))?;
    }
    for address in ["2001:db8:f::1/128", "2001:db8:c::9/128"] {
        run(&format!("-6 address add {address} dev lo nodad"))?;
    }
    Ok(())
}

fn run(words: &str) -> Result<()> {
    let output = Command::new("ip").args(words.split(' ')).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {words}: {said}");
    Ok(())
}

/// One that hands packets on; its own addresses are the tunnels' ends.
fn decapsulator() -> Result<Decapsulator> {
    Decapsulator::with_rules(&DecapRules {
        hosts: ENDS.iter().map(|(_, host, _)| ip(host)).collect(),
        second_chance: true,
        ..DecapRules::default()
    })
}

/// The packet as it comes, for the tunnel of these ends.
fn named(packet: &Packet, (source, host, second): (&str, &str, &str)) -> Vec<u8> {
    naming(packet, source, host, (second, SECOND_PORT))
}

/// The packet as it goes on: to the other address and port, without a name, one hop older, back to the MAC that it came from.
fn handed_on(packet: &Packet, (source, _, second): (&str, &str, &str)) -> Vec<u8> {
    let mut frame = expected(packet, source, second);
    frame[..ETHERNET].copy_from_slice(&ethernet(NEXT_HOP, BALANCER_MAC, ip(source).is_ipv4()));
    let udp = if ip(source).is_ipv4() {
        let (mut header, _) = Ipv4Header::from_slice(&frame[ETHERNET..]).expect("an IPv4 header");
        header.time_to_live -= 1;
        header.header_checksum = header.calc_header_checksum();
        frame[ETHERNET..ETHERNET + 20].copy_from_slice(&header.to_bytes());
        ETHERNET + 20
    } else {
        frame[ETHERNET + 7] -= 1;
        ETHERNET + 40
    };
    frame[udp + 2..udp + 4].copy_from_slice(&SECOND_PORT.to_be_bytes());
    frame
}

/// What the stack gets of a packet.
fn delivered(packet: &Packet) -> Vec<u8> {
    let mut frame = packet.frame();
    frame[..ETHERNET].copy_from_slice(&ethernet(BALANCER_MAC, NEXT_HOP, packet.from.is_ipv4()));
    frame
}

#[track_caller]
fn assert_handed_on(what: &str, packet: &Packet) {
    let decapsulator = decapsulator().expect("it loads");
    for ends in ENDS {
        let (frame, out) = (named(packet, ends), handed_on(packet, ends));
        let (outcome, counted) = decapsulator.run_counted(&frame).expect("it runs");
        let context = format!("{what}: {:?} over {}", packet.protocol, ends.0);
        assert_eq!(counted, [Reason::HandedOn], "{context}");
        assert_eq!(outcome.action, XdpAction::Tx, "{context}");
        assert_eq!(outcome.frame, out, "{context}");

        // The kernel writes the link header itself.
        let (answer, by_tc, counted) = decapsulator.run_tc(&frame).expect("it runs");
        assert_eq!(
            (answer, counted),
            (TC_ACT_REDIRECT, vec![Reason::HandedOn]),
            "{context} by tc"
        );
        assert_eq!(by_tc[ETHERNET..], out[ETHERNET..], "{context} by tc");

        // At the other one, whose address it is, it is not handed on again.
        let other = Decapsulator::with_rules(&DecapRules {
            second_chance: true,
            ..DecapRules::default()
        });
        let mut out = out;
        let port = ETHERNET + if ip(ends.0).is_ipv4() { 22 } else { 42 };
        out[port..port + 2].copy_from_slice(&gue::PORT.to_be_bytes());
        let (outcome, counted) = other
            .and_then(|other| other.run_counted(&out))
            .expect("it runs");
        assert_eq!(
            (outcome.action, counted),
            (XdpAction::Pass, vec![Reason::Gue])
        );
    }
}

#[track_caller]
fn assert_delivered(what: &str, packet: &Packet, frames: &[Vec<u8>], reason: Reason) {
    let decapsulator = decapsulator().expect("it loads");
    for frame in frames {
        let (outcome, counted) = decapsulator.run_counted(frame).expect("it runs");
        let expected = (XdpAction::Pass, vec![reason]);
        assert_eq!((outcome.action, counted), expected, "{what}");
        assert_eq!(outcome.frame, delivered(packet), "{what}");
        let (_, out, counted) = decapsulator.run_tc(frame).expect("it runs");
        assert_eq!(counted, [reason], "{what} by tc");
        assert_eq!(out[..outcome.frame.len()], outcome.frame, "{what} by tc");
    }
}

#[track_caller]
fn assert_kept(what: &str, packet: &Packet) {
    let frames = ENDS.map(|ends| named(packet, ends));
    assert_delivered(what, packet, &frames, Reason::Kept);
}

fn with_flags(packet: &Packet, flags: u8) -> Packet {
    Packet {
        flags,
        ..packet.clone()
    }
}

/// A connection from the packet's source to its destination: both ends.
fn connection(listener: &TcpListener, packet: &Packet) -> Result<(TcpStream, TcpStream)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let client = runtime.block_on(async {
        let socket = match packet.from {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(packet.from)?;
        socket.connect(packet.to).await?.into_std()
    })?;
    let (server, _) = listener.accept()?;
    client.set_nonblocking(false)?;
    Ok((client, server))
}

/// An error about what this host has sent of the packet's flow.
fn error(packet: &Packet) -> Packet {
    let kind = if packet.from.is_ipv4() { 3 } else { 1 };
    about(&reply(packet), kind, 8)
}

#[test]
fn a_host_without_a_socket_hands_everything_on() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    host()?;
    for protocol in Protocol::ALL {
        for packet in [v4(protocol), v6(protocol)] {
            for flags in [ACK, SYN, FIN | ACK, RST] {
                assert_handed_on("a packet", &with_flags(&packet, flags));
            }
            assert_handed_on("an error", &error(&packet));
            let optional = Packet {
                options: vec![1; 8],
                payload: vec![],
                ..v4(protocol)
            };
            assert_handed_on("a packet with options", &optional);
        }
    }
    Ok(())
}

#[test]
fn a_connection_that_is_here_is_kept_and_a_listener_takes_new_ones() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    host()?;
    for packet in [v4(Protocol::Tcp), v6(Protocol::Tcp)] {
        let listener = TcpListener::bind(packet.to)?;
        assert_kept("a SYN to a listener", &with_flags(&packet, SYN));
        for flags in [ACK, FIN | ACK, RST] {
            assert_handed_on("unknown to a listener", &with_flags(&packet, flags));
        }
        assert_handed_on("an error, to a listener", &error(&packet));
        let (mut client, server) = connection(&listener, &packet)?;
        for flags in [ACK, FIN | ACK, RST, SYN] {
            assert_kept("a connection", &with_flags(&packet, flags));
        }
        assert_kept("an error about a connection", &error(&packet));
        let mut other = packet.clone();
        other.from.set_port(40_001);
        assert_handed_on("another connection", &other);
        // This end closes first, and waits.
        drop(server);
        client.read_to_end(&mut Vec::new())?;
        drop(client);
        assert_kept("time-wait", &packet);
    }
    Ok(())
}

#[test]
fn a_udp_socket_keeps_what_it_would_get() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    host()?;
    for packet in [v4(Protocol::Udp), v6(Protocol::Udp)] {
        let socket = UdpSocket::bind(packet.to)?;
        assert_kept("any client's", &packet);
        assert_kept("an error", &error(&packet));
        socket.connect(packet.from)?;
        assert_kept("this client's", &packet);
        let mut other = packet.clone();
        other.from.set_port(40_001);
        assert_handed_on("another client's", &other);
    }
    Ok(())
}

/// TCP over IPv4 past the stack: what the test sends is what the packet says, and it sees what comes back.
struct Raw(OwnedFd);

impl Raw {
    fn open() -> Result<Self> {
        // SAFETY: the call takes numbers and returns a new descriptor, or -1.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP) };
        ensure!(fd >= 0, "socket: {}", std::io::Error::last_os_error());
        // SAFETY: it is open, and nobody else's.
        let raw = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let on: libc::c_int = 1;
        let length = mem::size_of_val(&on) as libc::socklen_t;
        // SAFETY: the pointer is that of a value of this length.
        let set = unsafe {
            libc::setsockopt(
                fd,
                libc::IPPROTO_IP,
                libc::IP_HDRINCL,
                (&raw const on).cast(),
                length,
            )
        };
        ensure!(set == 0, "IP_HDRINCL: {}", std::io::Error::last_os_error());
        Ok(raw)
    }

    fn send(&self, packet: &Packet) -> Result<()> {
        let (SocketAddr::V4(from), SocketAddr::V4(to)) = (packet.from, packet.to) else {
            anyhow::bail!("IPv4 only")
        };
        let mut bytes = packet.frame().split_off(ETHERNET);
        // The packet itself has none, and the stack looks at it.
        let (header, payload) = TcpHeader::from_slice(&bytes[20..])?;
        let sum = header.calc_checksum_ipv4_raw(from.ip().octets(), to.ip().octets(), payload)?;
        bytes[36..38].copy_from_slice(&sum.to_be_bytes());
        // SAFETY: all of it being 0 is a value.
        let mut address: libc::sockaddr_in = unsafe { mem::zeroed() };
        address.sin_family = libc::AF_INET as libc::sa_family_t;
        address.sin_addr.s_addr = u32::from(*to.ip()).to_be();
        // SAFETY: both pointers are those of values of these lengths.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
                (&raw const address).cast(),
                mem::size_of_val(&address) as libc::socklen_t,
            )
        };
        ensure!(sent >= 0, "sendto: {}", std::io::Error::last_os_error());
        Ok(())
    }

    /// The sequence number of the next segment that comes from a port.
    fn answer(&self, port: u16) -> Result<u32> {
        let limit = libc::timeval {
            tv_sec: 2,
            tv_usec: 0,
        };
        // SAFETY: the pointer is that of a value of this length.
        let set = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const limit).cast(),
                mem::size_of_val(&limit) as libc::socklen_t,
            )
        };
        ensure!(set == 0, "SO_RCVTIMEO: {}", std::io::Error::last_os_error());
        let mut file = fs::File::from(self.0.try_clone()?);
        loop {
            let mut buffer = [0; 128];
            let length = file.read(&mut buffer).context("no answer")?;
            ensure!(length >= 40, "a segment of {length} bytes");
            if buffer[20..22] == port.to_be_bytes() {
                let number: [u8; 4] = buffer[24..28].try_into()?;
                return Ok(u32::from_be_bytes(number));
            }
        }
    }
}

/// A connection that has begun and of which nothing has been heard since is one of this host's.
#[test]
fn half_a_connection_is_kept() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    host()?;
    // The answer to this client is lost: nobody is behind that interface.
    run("link set eth1 up")?;
    run("route add 198.51.100.77/32 dev eth1")?;
    for key in ["all", "lo"] {
        fs::write(format!("/proc/sys/net/ipv4/conf/{key}/rp_filter"), "0")?;
    }
    let mut syn = Packet {
        flags: SYN,
        payload: vec![],
        ..v4(Protocol::Tcp)
    };
    syn.from = "198.51.100.77:5000".parse()?;
    let _listener = TcpListener::bind(syn.to)?;
    assert_handed_on("before", &with_flags(&syn, ACK));
    Raw::open()?.send(&syn)?;
    std::thread::sleep(Duration::from_millis(100));
    assert_kept("a request socket", &with_flags(&syn, ACK));
    Ok(())
}

/// Under a flood of SYNs a host remembers nothing of a connection that begins, but knows its own cookie.
#[test]
fn the_answer_to_a_syn_cookie_is_kept() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    host()?;
    fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2")?;
    let syn = Packet {
        flags: SYN,
        payload: vec![],
        ..v4(Protocol::Tcp)
    };
    let _listener = TcpListener::bind(syn.to)?;
    let raw = Raw::open()?;
    raw.send(&syn)?;
    let cookie = raw.answer(443).context("no answer to the SYN")?;
    let decapsulator = decapsulator()?;
    let ack = with_flags(&syn, ACK);
    let inner = ETHERNET + 20 + 12 + 8 + 20;
    let sequence: [u8; 4] = syn.frame()[ETHERNET + 24..ETHERNET + 28].try_into()?;
    for (more, reason) in [(1, Reason::Kept), (0x0100_0000, Reason::HandedOn)] {
        let mut frame = named(&ack, ENDS[0]);
        let sequence = u32::from_be_bytes(sequence).wrapping_add(1);
        frame[inner + 4..inner + 8].copy_from_slice(&sequence.to_be_bytes());
        let acknowledged = cookie.wrapping_add(more);
        frame[inner + 8..inner + 12].copy_from_slice(&acknowledged.to_be_bytes());
        let (_, counted) = decapsulator.run_counted(&frame)?;
        assert_eq!(counted, [reason], "cookie + {more:#x}");
        let (.., counted) = decapsulator.run_tc(&frame)?;
        assert_eq!(counted, [reason], "cookie + {more:#x} by tc");
    }
    Ok(())
}

/// Names that cannot be understood or followed are no names: the packet is delivered as it would be without.
#[test]
fn a_name_that_says_nothing_is_ignored() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    host()?;
    let packet = v4(Protocol::Tcp);
    let [ends @ (source, host, _), over_v6] = ENDS;
    let name = ETHERNET + 20 + 12;
    let changed = |changes: &[(usize, u8)]| {
        let mut frame = named(&packet, ends);
        changes.iter().for_each(|(at, to)| frame[*at] = *to);
        frame
    };
    // The TTL's place in the checksum: one less here is one more there.
    let mut old = named(&packet, ends);
    let (mut header, _) = Ipv4Header::from_slice(&old[ETHERNET..])?;
    header.time_to_live = 1;
    header.header_checksum = header.calc_header_checksum();
    old[ETHERNET..ETHERNET + 20].copy_from_slice(&header.to_bytes());
    let mut mapped = named(&packet, over_v6);
    let address = ETHERNET + 40 + 12 + 4;
    mapped[address..address + 16]
        .copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 1, 8]);
    for (what, frame) in [
        ("another kind", changed(&[(name, 0x22)])),
        ("another length", changed(&[(name + 1, 16)])),
        ("no port", changed(&[(name + 2, 0), (name + 3, 0)])),
        ("a group", changed(&[(name + 4, 224)])),
        ("loopback", changed(&[(name + 4, 127)])),
        (
            "this host",
            naming(&packet, source, host, (host, SECOND_PORT)),
        ),
        ("the last hop", old),
        ("an IPv4 address in IPv6", mapped),
    ] {
        println!("{what}");
        assert_delivered(what, &packet, &[frame], Reason::Gue);
    }
    // More words than there are, and words that reach into the packet.
    let decapsulator = decapsulator()?;
    for words in [3, 31] {
        let frame = changed(&[(name - 4, words)]);
        let (outcome, counted) = decapsulator.run_counted(&frame)?;
        assert_eq!(
            (outcome.action, counted),
            (XdpAction::Pass, vec![Reason::Malformed])
        );
        assert_eq!(outcome.frame, frame, "altered");
        let (_, out, counted) = decapsulator.run_tc(&frame)?;
        assert_eq!((out, counted), (frame, vec![Reason::Malformed]));
    }
    Ok(())
}

#[test]
fn what_has_no_ports_is_delivered_and_so_is_everything_by_one_that_gives_no_second_chance()
-> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    host()?;
    let first = Packet {
        more_fragments: true,
        dont_fragment: false,
        ..v4(Protocol::Udp)
    };
    let later = Packet {
        fragment_offset: 8,
        dont_fragment: false,
        ..v4(Protocol::Udp)
    };
    let extended = Packet {
        extensions: vec![(60, vec![0, 0, 1, 4, 0, 0, 0, 0])],
        ..v6(Protocol::Tcp)
    };
    let ping = Packet {
        icmp: Some(vec![8, 0, 0, 0, 0, 0, 0, 1]),
        ..v4(Protocol::Udp)
    };
    for (what, packet) in [
        ("a first fragment", first),
        ("a later one", later),
        ("extension headers", extended),
        ("a ping", ping),
    ] {
        assert_kept(what, &packet);
    }
    let off = Decapsulator::load()?;
    for packet in [v4(Protocol::Tcp), v6(Protocol::Udp)] {
        for ends in ENDS {
            let (outcome, counted) = off.run_counted(&named(&packet, ends))?;
            assert_eq!(
                (outcome.action, counted),
                (XdpAction::Pass, vec![Reason::Gue])
            );
            assert_eq!(outcome.frame, delivered(&packet));
        }
    }
    Ok(())
}

/// Where the host forwards, its routes and neighbours say where the packet leaves.
#[test]
fn the_kernel_s_next_hop_is_taken() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    host()?;
    for key in ["ipv4/conf/all", "ipv4/conf/lo", "ipv6/conf/all"] {
        fs::write(format!("/proc/sys/net/{key}/forwarding"), "1")?;
    }
    run("link set eth1 address 02:00:00:00:00:51 up")?;
    run("link set peer up")?;
    run("address add 10.0.1.1/24 dev eth1")?;
    run("-6 address add fd00:1::1/64 dev eth1 nodad")?;
    let decapsulator = decapsulator()?;
    for ends in ENDS {
        let packet = v4(Protocol::Tcp);
        run(&format!(
            "neigh replace {} lladdr 02:00:00:00:00:52 dev eth1",
            ends.2
        ))?;
        let (outcome, counted) = decapsulator.run_counted(&named(&packet, ends))?;
        assert_eq!(counted, [Reason::HandedOn]);
        assert_eq!(outcome.action, XdpAction::Redirect);
        let mut out = handed_on(&packet, ends);
        let (own, next_hop) = ([2, 0, 0, 0, 0, 0x51], [2, 0, 0, 0, 0, 0x52]);
        let link = ethernet(own, next_hop, ip(ends.0).is_ipv4());
        out[..ETHERNET].copy_from_slice(&link);
        assert_eq!(outcome.frame, out);
        let (answer, by_tc, counted) = decapsulator.run_tc(&named(&packet, ends))?;
        assert_eq!((answer, counted), (TC_ACT_REDIRECT, vec![Reason::HandedOn]));
        assert_eq!(by_tc[ETHERNET..], out[ETHERNET..]);
    }
    Ok(())
}
