//! Jumbo frames through the real program in native mode: uploads in segments of some 8,900 bytes.

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    scenario::scenario_of,
    topology::{Layout, VIP_V4, VIP_V6},
};
use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(10);
const PORT: u16 = 9_000;
const BYTES: usize = 32 << 20;

/// Byte `i` of an upload.
const fn byte(i: usize) -> u8 {
    (i % 251) as u8
}

/// Takes one upload and answers with the number of bytes that were right.
fn sink(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(LIMIT))?;
    let (mut total, mut right) = (0, 0_u64);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        let good = |(i, got): (usize, &u8)| *got == byte(total + i);
        right += buffer[..length]
            .iter()
            .enumerate()
            .filter(|pair| good(*pair))
            .count() as u64;
        total += length;
    }
    Ok(stream.write_all(&right.to_be_bytes())?)
}

/// Uploads and returns how many bytes arrived right.
fn upload(server: SocketAddr) -> Result<u64> {
    let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.set_read_timeout(Some(LIMIT))?;
    let data: Vec<u8> = (0..BYTES).map(byte).collect();
    stream.write_all(&data)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut right = [0; 8];
    stream.read_exact(&mut right).context("no answer")?;
    Ok(u64::from_be_bytes(right))
}

#[test]
fn uploads_in_jumbo_frames_arrive_byte_for_byte() {
    scenario_of(1, Layout::Routed, "native", |scenario| {
        scenario.grow_to_jumbo_frames()?;
        scenario.start_lbd()?;
        let backend = &scenario.topology.backends[0];
        for (vip, mode) in [
            (IpAddr::from(VIP_V4), "ipip"),
            (VIP_V6.into(), "ipip"),
            (VIP_V4.into(), "gue"),
        ] {
            let (server, address) = (SocketAddr::new(vip, PORT), backend.address_like(vip));
            let listener = backend.namespace.run(|| TcpListener::bind(server))?;
            thread::spawn(move || sink(&listener));
            scenario.node.ok(&format!(
                "service add sink --address {vip} --port {PORT} --mode {mode} --health none"
            ))?;
            scenario.node.ok(&format!(
                "backend add backend-1 --service sink --address {address}"
            ))?;
            scenario.node.wait_active(&["backend-1"])?;
            let before = scenario.node.stats()?;
            let right = scenario.topology.client.run(|| upload(server))?;
            ensure!(right == BYTES as u64, "{right} of {BYTES} bytes by {mode}");
            let after = scenario.node.stats()?;
            let service = after.services.first().context("no service")?;
            ensure!(before.services.len() == 1, "{before:?}");
            // Acknowledgements and a few small packets lower the mean.
            let data = service.bytes / service.packets;
            ensure!(data > 6_000, "{data} bytes a packet: {service:?}");
            scenario.node.ok("service remove sink --now")?;
        }
        let status = scenario.node.status()?;
        assert_eq!(status.interfaces[0].mode, "native", "{status:?}");
        scenario.node.nothing_dropped()
    });
}
