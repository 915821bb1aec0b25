//! One probe: is a TCP connection accepted in time? The checker sees it through [`Prober`], so that its schedule can
//! be tested without a network.

use super::state::NoAnswer;
use std::{future::Future, io, net::SocketAddr, time::Duration};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

/// The checker's only way to the network.
pub trait Prober: Send + Sync + 'static {
    /// Probes `target` and gives the time it took, or why there was no answer in a short and stable form. Ends after
    /// `limit`.
    fn probe(
        &self,
        target: SocketAddr,
        limit: Duration,
    ) -> impl Future<Output = Result<Duration, NoAnswer>> + Send;
}

/// Probes by opening a TCP connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpProber;

impl Prober for TcpProber {
    async fn probe(&self, target: SocketAddr, limit: Duration) -> Result<Duration, NoAnswer> {
        let start = Instant::now();
        match timeout(limit, TcpStream::connect(target)).await {
            Ok(Ok(stream)) => {
                let latency = start.elapsed();
                // Close with a reset: thousands of probes would otherwise leave thousands of ports in TIME_WAIT.
                // If that fails the connection is closed in the ordinary way, which is no fault of the target.
                let _ = stream.set_zero_linger();
                Ok(latency)
            }
            Ok(Err(error)) => Err(no_answer(&error)),
            Err(_) => Err(NoAnswer::Failed(format!(
                "timed out after {}",
                humantime::format_duration(limit)
            ))),
        }
    }
}

/// Who is to blame. Of what connect(2) and socket(2) say, these speak of this host alone.
fn no_answer(error: &io::Error) -> NoAnswer {
    match error.raw_os_error() {
        Some(
            libc::EMFILE
            | libc::ENFILE
            | libc::ENOBUFS
            | libc::ENOMEM
            | libc::EADDRNOTAVAIL
            | libc::EACCES
            | libc::EPERM,
        ) => NoAnswer::NotProbed(reason(error)),
        _ => NoAnswer::Failed(reason(error)),
    }
}

/// A reason without addresses or error numbers, so that equal failures read equal.
fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "connection refused".into(),
        Some(libc::ECONNRESET) => "connection reset".into(),
        Some(libc::EHOSTUNREACH) => "no route to host".into(),
        Some(libc::ENETUNREACH) => "network unreachable".into(),
        // The kernel's own connection timeout, shorter than ours.
        Some(libc::ETIMEDOUT) => "timed out".into(),
        Some(libc::EMFILE) => "lbd has too many files open; raise its limit (LimitNOFILE)".into(),
        Some(libc::ENFILE) => "this host has too many files open; raise fs.file-max".into(),
        Some(libc::ENOBUFS | libc::ENOMEM) => "this host is out of memory for sockets".into(),
        Some(libc::EACCES | libc::EPERM) => "not permitted by the local firewall".into(),
        Some(libc::EADDRNOTAVAIL) => "no local address or port left to probe from".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const LIMIT: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn a_listener_is_up_in_both_families() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let latency = TcpProber
                .probe(listener.local_addr().unwrap(), LIMIT)
                .await
                .unwrap();
            assert!(latency < LIMIT, "{address}: {latency:?}");
        }
    }

    #[tokio::test]
    async fn a_closed_port_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(
            TcpProber.probe(address, LIMIT).await,
            Err(NoAnswer::Failed("connection refused".into()))
        );
    }

    /// A listener with a full backlog does not answer the handshake: the kernel drops the SYN.
    #[tokio::test]
    async fn silence_is_a_timeout() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut held = Vec::new();
        for _ in 0..16 {
            match timeout(Duration::from_millis(50), TcpStream::connect(address)).await {
                Ok(stream) => held.push(stream.unwrap()),
                Err(_) => break,
            }
        }
        let result = TcpProber.probe(address, Duration::from_millis(150)).await;
        assert_eq!(
            result,
            Err(NoAnswer::Failed("timed out after 150ms".into()))
        );
    }

    #[test]
    fn a_lack_of_this_host_is_not_held_against_the_target() {
        let answer = |errno| no_answer(&io::Error::from_raw_os_error(errno));
        for errno in [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::ENOMEM,
            libc::EADDRNOTAVAIL,
            libc::EACCES,
            libc::EPERM,
        ] {
            assert!(matches!(answer(errno), NoAnswer::NotProbed(_)), "{errno}");
        }
        for errno in [
            libc::ECONNREFUSED,
            libc::ECONNRESET,
            libc::EHOSTUNREACH,
            libc::ENETUNREACH,
            libc::ETIMEDOUT,
            libc::EPROTO,
        ] {
            assert!(matches!(answer(errno), NoAnswer::Failed(_)), "{errno}");
        }
    }

    #[tokio::test]
    async fn a_probe_leaves_no_time_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        TcpProber.probe(address, LIMIT).await.unwrap();
        let error = io::Read::read(&mut listener.accept().unwrap().0, &mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
