//! What a scraper reads, line by line, from a small example; and the same over HTTP.

use super::*;
use crate::api::{
    handle::{Handle, Request},
    protocol::{
        BackendStats, BackendView, FlowStats, InterfaceStatus, QuicStats, ServiceStats,
        VerdictStats,
    },
    server::Limits,
};
use std::collections::BTreeMap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

fn backend(service: &str, name: &str, health: &str, slots: u32) -> BackendView {
    BackendView {
        service: service.into(),
        name: name.into(),
        address: "10.0.0.1".into(),
        weight: 100,
        drain: false,
        server_id: None,
        health: health.into(),
        health_detail: String::new(),
        probe_us: None,
        next_hop: if slots > 0 { "resolved" } else { "unresolved" }.into(),
        next_hop_detail: String::new(),
        slots,
        active: slots > 0,
        slow_start_percent: None,
        inactive_reason: String::new(),
    }
}

fn service(name: &str, backends: Vec<BackendView>) -> ServiceView {
    ServiceView {
        name: name.into(),
        address: "192.0.2.1".into(),
        protocol: "tcp".into(),
        port: 80,
        mode: "ipip".into(),
        gue_port: None,
        hash: "5-tuple".into(),
        when_all_down: "open".into(),
        echo: false,
        quic: None,
        tracking: "moved".into(),
        on_down: "reset".into(),
        drain_timeout_ms: 300_000,
        udp_settle_ms: 60_000,
        slow_start_ms: None,
        condition: "up".into(),
        health: None,
        backends,
    }
}

fn stats(services: &[(&str, u64)]) -> Stats {
    let verdict = |name: &str, action: &str, packets| VerdictStats {
        name: name.into(),
        action: action.into(),
        description: String::new(),
        packets,
    };
    let service = |(name, packets): &(&str, u64)| ServiceStats {
        name: (*name).into(),
        packets: *packets,
        bytes: packets * 100,
        backends: vec![BackendStats {
            name: "web-1".into(),
            packets: *packets,
            bytes: packets * 100,
        }],
    };
    Stats {
        verdicts: vec![
            verdict("forwarded", "forward", 12),
            verdict("drop_no_backend", "drop", u64::MAX),
        ],
        services: services.iter().map(service).collect(),
        flows: FlowStats {
            entries: 5,
            evicted: 3,
            quic: QuicStats {
                routed: 9,
                unknown: 2,
                ..QuicStats::default()
            },
            ..FlowStats::default()
        },
    }
}

fn status() -> Status {
    let interface = |name: &str, mode: &str| InterfaceStatus {
        name: name.into(),
        index: 2,
        mode: mode.into(),
        program_id: 9,
        note: String::new(),
    };
    Status {
        version: "0.1.0".into(),
        pid: 1,
        uptime_seconds: 5,
        condition: "ok".into(),
        warnings: Vec::new(),
        revision: 7,
        interfaces: vec![interface("eth0", "native"), interface("we\"ird\\", "none")],
        services: 1,
        backends: 2,
        backends_active: 1,
        node: None,
    }
}

/// The sample lines by series, after checks of the text's form.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    assert!(text.ends_with("# EOF\n"));
    let mut typed = BTreeSet::new();
    let mut samples = BTreeMap::new();
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert!(
                typed.insert(rest.split(' ').next().unwrap()),
                "two families of one name: {line}"
            );
        } else if !line.starts_with("# ") {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(series.starts_with("guideway_"), "{line}");
            assert!(
                samples.insert(series, value.parse().unwrap()).is_none(),
                "twice: {line}"
            );
        }
    }
    samples
}

#[test]
fn a_small_example_reads_as_it_should() {
    let mut metrics = Metrics::new(
        "abc123",
        SystemTime::UNIX_EPOCH + Duration::from_millis(1500),
    );
    metrics.observe_probe("www", Outcome::Success, Some(Duration::from_micros(700)));
    metrics.observe_probe("www", Outcome::Failure, None);
    // The latency is an earlier probe's.
    let earlier = Some(Duration::from_micros(700));
    metrics.observe_probe("www", Outcome::NotProbed, earlier);
    metrics.table_changed("www", 300);
    metrics.table_changed("www", 21);
    metrics.observe_reconcile(Duration::from_millis(2));
    metrics.change_refused();
    let backends = vec![
        backend("www", "web-1", "up", 65_537),
        backend("www", "web-2", "down", 0),
    ];
    metrics.set_views(
        &[service("www", backends)],
        &stats(&[("www", 12)]),
        &status(),
    );
    let text = metrics.encode();
    let samples = samples(&text);
    let version = env!("CARGO_PKG_VERSION");
    let build = format!("guideway_build_info{{version=\"{version}\",commit=\"abc123\"}}");
    let expected = [
        (build.as_str(), 1.0),
        ("guideway_start_time_seconds", 1.5),
        (
            "guideway_interface_attached{interface=\"eth0\",mode=\"native\"}",
            1.0,
        ),
        (
            "guideway_interface_attached{interface=\"we\\\"ird\\\\\",mode=\"none\"}",
            0.0,
        ),
        ("guideway_services", 1.0),
        ("guideway_backends", 2.0),
        ("guideway_backends_active", 1.0),
        ("guideway_state_revision", 7.0),
        (
            "guideway_verdict_packets_total{verdict=\"forwarded\",action=\"forward\"}",
            12.0,
        ),
        (
            "guideway_verdict_packets_total{verdict=\"drop_no_backend\",action=\"drop\"}",
            u64::MAX as f64,
        ),
        ("guideway_service_packets_total{service=\"www\"}", 12.0),
        ("guideway_service_bytes_total{service=\"www\"}", 1200.0),
        (
            "guideway_backend_packets_total{service=\"www\",backend=\"web-1\"}",
            12.0,
        ),
        (
            "guideway_backend_bytes_total{service=\"www\",backend=\"web-1\"}",
            1200.0,
        ),
        (
            "guideway_backend_up{service=\"www\",backend=\"web-1\"}",
            1.0,
        ),
        (
            "guideway_backend_up{service=\"www\",backend=\"web-2\"}",
            0.0,
        ),
        (
            "guideway_backend_next_hop_resolved{service=\"www\",backend=\"web-2\"}",
            0.0,
        ),
        (
            "guideway_backend_active{service=\"www\",backend=\"web-1\"}",
            1.0,
        ),
        (
            "guideway_backend_slots{service=\"www\",backend=\"web-1\"}",
            65_537.0,
        ),
        (
            "guideway_backend_weight{service=\"www\",backend=\"web-2\"}",
            100.0,
        ),
        ("guideway_table_changes_total{service=\"www\"}", 2.0),
        ("guideway_table_slots_changed_total{service=\"www\"}", 321.0),
        (
            "guideway_probes_total{service=\"www\",result=\"success\"}",
            1.0,
        ),
        (
            "guideway_probes_total{service=\"www\",result=\"failure\"}",
            1.0,
        ),
        (
            "guideway_probes_total{service=\"www\",result=\"not_probed\"}",
            1.0,
        ),
        (
            "guideway_probe_duration_seconds_count{service=\"www\"}",
            1.0,
        ),
        (
            "guideway_probe_duration_seconds_bucket{le=\"0.0005\",service=\"www\"}",
            0.0,
        ),
        (
            "guideway_probe_duration_seconds_bucket{le=\"0.001\",service=\"www\"}",
            1.0,
        ),
        ("guideway_reconcile_duration_seconds_count", 1.0),
        (
            "guideway_reconcile_duration_seconds_bucket{le=\"0.001\"}",
            0.0,
        ),
        (
            "guideway_reconcile_duration_seconds_bucket{le=\"0.005\"}",
            1.0,
        ),
        ("guideway_changes_refused_total", 1.0),
    ];
    for (series, value) in expected {
        assert_eq!(samples.get(series), Some(&value), "{series} in\n{text}");
    }
    // The text has the counter exactly, although a float does not.
    assert!(text.contains(&format!("action=\"drop\"}} {}\n", u64::MAX)));
    assert!(text.contains("# TYPE guideway_probe_duration_seconds histogram\n"));
}

#[test]
fn series_of_what_is_gone_vanish_and_those_of_what_stays_keep_their_counts() {
    let mut metrics = Metrics::new("", SystemTime::UNIX_EPOCH);
    let www = || service("www", vec![backend("www", "web-1", "up", 9)]);
    let old = service("old", vec![backend("old", "web-1", "up", 9)]);
    for name in ["www", "old"] {
        metrics.observe_probe(name, Outcome::Success, Some(Duration::from_millis(1)));
        metrics.table_changed(name, 5);
    }
    metrics.set_views(&[www(), old], &stats(&[("www", 1), ("old", 1)]), &status());
    assert!(metrics.encode().contains("\"old\""));

    let nothing_attached = Status {
        interfaces: Vec::new(),
        ..status()
    };
    metrics.set_views(&[www()], &stats(&[("www", 2)]), &nothing_attached);
    let text = metrics.encode();
    assert!(!text.contains("\"old\""), "{text}");
    assert!(!text.contains("eth0"));
    let samples = samples(&text);
    assert_eq!(
        samples["guideway_service_packets_total{service=\"www\"}"],
        2.0
    );
    assert_eq!(
        samples["guideway_table_slots_changed_total{service=\"www\"}"],
        5.0
    );

    // A probe that was on its way when its service was removed comes in late.
    metrics.observe_probe("old", Outcome::Failure, None);
    metrics.set_views(&[www()], &stats(&[("www", 2)]), &status());
    assert!(!metrics.encode().contains("\"old\""));
}

#[test]
fn a_new_service_starts_at_zero() {
    let mut metrics = Metrics::new("", SystemTime::UNIX_EPOCH);
    metrics.set_views(&[service("www", Vec::new())], &stats(&[]), &status());
    let text = metrics.encode();
    let samples = samples(&text);
    for series in [
        "table_changes_total{service=\"www\"}",
        "probes_total{service=\"www\",result=\"failure\"}",
    ] {
        assert_eq!(
            samples.get(format!("guideway_{series}").as_str()),
            Some(&0.0),
            "{text}"
        );
    }
}

#[tokio::test]
async fn scrapes_are_answered_by_the_control_loop_and_refused_without_it() {
    let (handle, mut requests) = Handle::new(1);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(serve(listener, handle));
    let control_loop = tokio::spawn(async move {
        for _ in 0..2 {
            match requests.recv().await.unwrap() {
                Request::Metrics(reply) => reply.send("# EOF\n".into()).unwrap(),
                Request::Status(reply) => reply
                    .send(Status {
                        condition: "degraded".into(),
                        ..status()
                    })
                    .unwrap(),
                other => panic!("{other:?}"),
            }
        }
    });
    let scrape = reqwest::get(format!("{base}/metrics")).await.unwrap();
    assert_eq!(scrape.status(), 200);
    assert_eq!(
        scrape.headers()["content-type"],
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    assert_eq!(scrape.text().await.unwrap(), "# EOF\n");
    let health = reqwest::get(format!("{base}/healthz")).await.unwrap();
    assert_eq!(
        (
            health.status().as_u16(),
            health.text().await.unwrap().as_str()
        ),
        (200, "degraded\n")
    );
    assert_eq!(
        reqwest::get(format!("{base}/else")).await.unwrap().status(),
        404
    );

    control_loop.await.unwrap();
    let stopped = reqwest::get(format!("{base}/metrics")).await.unwrap();
    assert_eq!(
        (
            stopped.status().as_u16(),
            stopped.text().await.unwrap().as_str()
        ),
        (503, "lbd is stopping; ask again when it runs\n")
    );
    server.abort();
}

/// Clients that connect and say nothing take every place; a scrape that comes after them is answered all the same.
#[tokio::test]
async fn silent_clients_lose_their_places() {
    let limits = Limits {
        connections: 2,
        head: Duration::from_millis(100),
        ..Limits::default()
    };
    let (handle, requests) = Handle::new(1);
    drop(requests);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(server::serve_within(listener, handle, limits));
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let mut scrape = TcpStream::connect(address).await.unwrap();
    scrape
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    let read = scrape.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(5), read)
        .await
        .expect("an answer in time")
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    for mut client in silent {
        // The server has closed it, perhaps after a word of its own (408).
        let end = client.read_to_string(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(5), end)
            .await
            .expect("the connection is closed");
    }
    server.abort();
}
