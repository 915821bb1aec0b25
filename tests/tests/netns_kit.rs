//! The network of the other tests, without a balancer: what fails here is not the balancer's fault.

use anyhow::Result;
use lb_tests::{
    http, nginx, pattern, require,
    session::Session,
    topology::{CLIENT_V4, CLIENT_V6, Layout, Topology, VIP_V4, VIP_V6},
};
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    sync::atomic::AtomicU64,
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn a_backend_behind_the_router_answers_on_the_vip_of_both_families() -> Result<()> {
    if !require::network() {
        return Ok(());
    }
    for layout in [Layout::Routed, Layout::Bridged] {
        let session = Session::unique();
        let directory = session.directory();
        fs::create_dir(&directory)?;
        pattern::write(&directory.join(nginx::LARGE_FILE), 8 << 20)?;
        let network = Topology::create(&session, layout, 1)?;
        let backend = &network.backends[0];
        let _web = nginx::start(backend, &directory)?;
        network
            .router
            .ip(&format!("route replace {VIP_V4}/32 via {}", backend.v4))?;
        network
            .router
            .ip(&format!("route replace {VIP_V6}/128 via {}", backend.v6))?;
        for (vip, client) in [
            (IpAddr::from(VIP_V4), IpAddr::from(CLIENT_V4)),
            (VIP_V6.into(), CLIENT_V6.into()),
        ] {
            let server = SocketAddr::new(vip, nginx::PORT);
            let answer = network.client.run(|| http::ask(server, LIMIT))?;
            assert_eq!(
                (answer.backend, answer.client),
                ("backend-1".into(), client.to_string()),
                "{layout:?}"
            );
            let progress = AtomicU64::new(0);
            let download = network
                .client
                .run(|| http::download(server, "/large", LIMIT, &progress))?;
            assert_eq!(
                (download.bytes, progress.into_inner()),
                (8 << 20, 8 << 20),
                "{layout:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_namespace_is_removed_when_its_test_panics() -> Result<()> {
    if !require::network() {
        return Ok(());
    }
    let name = Session::unique().namespace("panic");
    let panicked = std::panic::catch_unwind(|| {
        let _namespace = lb_tests::netns::Namespace::create(&name);
        assert!(lb_tests::netns::list().contains(&name));
        panic!("on purpose");
    });
    assert!(panicked.is_err());
    assert!(!lb_tests::netns::list().contains(&name));
    Ok(())
}
