//! A stream of datagrams to the VIP, and which balancer the router sends each to: a change of the router's mind is seen within
//! two milliseconds or so.

use crate::{
    chaos::server::UDP_PORT,
    moment::{self, millis},
    topology::{Topology, VIP_V4, port},
};
use anyhow::{Context, Result, ensure};
use std::{
    collections::BTreeSet,
    io, mem,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Flows of the stream: enough that each of two balancers has some, whatever the router's hash.
const FLOWS: usize = 24;
/// Between two datagrams.
const PAUSE: Duration = Duration::from_micros(500);
/// Flows of a balancer are those that it got in this time, in milliseconds.
const RECENT: f64 = 300.0;
/// Milliseconds that count as later.
const LATER: f64 = 60_000.0;

/// When which flow, by its source port, went to a balancer.
type Seen = Arc<Mutex<Vec<(f64, u16)>>>;

/// The stream, until it is dropped.
#[derive(Debug)]
pub(super) struct Stream {
    /// In order of balancers.
    seen: Vec<Seen>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    /// Begins it, and listens on the router's interfaces to so many balancers.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub(super) fn start(topology: &Topology, balancers: u8) -> Result<Self> {
        let mut stream = Self {
            seen: vec![],
            stop: Arc::default(),
            threads: vec![],
        };
        for number in 1..=balancers {
            let socket = topology.router.run(|| listen(&port(number)))?;
            let (seen, stop) = (Seen::default(), Arc::clone(&stream.stop));
            stream.seen.push(Arc::clone(&seen));
            stream
                .threads
                .push(thread::spawn(move || note(&socket, &seen, &stop)));
        }
        let sockets = topology.client.run(|| {
            (0..FLOWS)
                .map(|_| connect())
                .collect::<io::Result<Vec<UdpSocket>>>()
        })?;
        let stop = Arc::clone(&stream.stop);
        stream
            .threads
            .push(thread::spawn(move || send(&sockets, &stop)));
        Ok(stream)
    }

    /// Milliseconds from a moment to the first datagram that went to another balancer, of the flows that balancer `number` had
    /// just before; none: there was none.
    pub(super) fn moved(&self, number: u8, from: f64) -> Option<f64> {
        let own = usize::from(number - 1);
        let flows: BTreeSet<u16> = locked(&self.seen[own])
            .iter()
            .filter(|(at, _)| (-RECENT..0.0).contains(&millis(from, *at)))
            .map(|(_, flow)| *flow)
            .collect();
        let others = self.seen.iter().enumerate().filter(|(one, _)| *one != own);
        let first = |(_, seen): (usize, &Seen)| {
            let seen = locked(seen);
            let later = seen.iter().filter(|(_, flow)| flows.contains(flow));
            let mut later = later.map(|(at, _)| millis(from, *at));
            later.find(|passed| (0.0..LATER).contains(passed))
        };
        others.filter_map(first).min_by(f64::total_cmp)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn locked(seen: &Seen) -> std::sync::MutexGuard<'_, Vec<(f64, u16)>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((VIP_V4, UDP_PORT))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn send(sockets: &[UdpSocket], stop: &AtomicBool) {
    let mut answer = [0; 64];
    for socket in sockets.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // What cannot be sent, as the router may say, is lost; answers are not the question here.
        let _ = socket.send(&[0; 16]);
        while socket.recv(&mut answer).is_ok() {}
        thread::sleep(PAUSE);
    }
}

/// Notes every datagram to the VIP that leaves by the socket's interface.
fn note(socket: &OwnedFd, seen: &Seen, stop: &AtomicBool) {
    let mut packet = [0_u8; 64];
    while !stop.load(Ordering::Relaxed) {
        // SAFETY: the pointer and the length are those of `packet`.
        let length = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                packet.as_mut_ptr().cast(),
                packet.len(),
                0,
            )
        };
        // An error is that nothing came for a while.
        let Ok(length) = usize::try_from(length) else {
            continue;
        };
        if let Some(flow) = flow(&packet[..length]) {
            locked(seen).push((moment::now(), flow));
        }
    }
}

/// The source port of a datagram to the stream's server.
fn flow(packet: &[u8]) -> Option<u16> {
    let ip = etherparse::Ipv4HeaderSlice::from_slice(packet).ok()?;
    if ip.protocol() != etherparse::IpNumber::UDP || ip.destination_addr() != VIP_V4 {
        return None;
    }
    let udp = etherparse::UdpHeaderSlice::from_slice(packet.get(ip.slice().len()..)?).ok()?;
    (udp.destination_port() == UDP_PORT).then(|| udp.source_port())
}

/// A socket that gets what goes out by an interface, without Ethernet headers. Call it in the router's namespace.
fn listen(interface: &str) -> Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(interface)
        .with_context(|| format!("the router has no {interface}"))?;
    // What goes out is shown to sockets for all protocols only (packet(7)).
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: socket(2) takes no pointers.
    let descriptor = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            all.into(),
        )
    };
    let error = io::Error::last_os_error;
    ensure!(descriptor >= 0, "no AF_PACKET socket: {}", error());
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    // SAFETY: zeroes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = index as i32;
    // SAFETY: the pointer and the length are those of `address`.
    let bound = unsafe {
        libc::bind(
            descriptor,
            (&raw const address).cast(),
            mem::size_of_val(&address) as u32,
        )
    };
    ensure!(bound == 0, "cannot bind the AF_PACKET socket: {}", error());
    let wait = libc::timeval {
        tv_sec: 0,
        tv_usec: 100_000,
    };
    // SAFETY: the pointer and the length are those of `wait`.
    let set = unsafe {
        libc::setsockopt(
            descriptor,
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const wait).cast(),
            mem::size_of_val(&wait) as u32,
        )
    };
    ensure!(set == 0, "no time limit for the socket: {}", error());
    Ok(socket)
}
