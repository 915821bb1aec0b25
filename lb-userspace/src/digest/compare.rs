//! What differs between the digests of two nodes, in sentences.

use super::{BackendDigest, DigestView, ServiceDigest};
use std::{collections::BTreeMap, fmt::Display};

/// What differs between two nodes so that the same flow may not fare the same on both; empty when nothing does. Two
/// versions of `lbd` are no difference as long as their tables are equal.
pub fn compare(ours: &DigestView, theirs: &DigestView) -> Vec<String> {
    let mut differences = Differences::default();
    let (our_node, their_node) = (&ours.node, &theirs.node);
    differences.check("hash_seed", &our_node.hash_seed, &their_node.hash_seed);
    let pairs = pairs(&ours.services, &theirs.services, |service| &service.name);
    for (name, pair) in pairs {
        let found = differences.0.len();
        let (ours, theirs) = match pair {
            (Some(ours), Some(theirs)) => (ours, theirs),
            (ours, _) => {
                differences.only(&format!("service {name}"), ours.is_some());
                continue;
            }
        };
        differences.service(ours, theirs);
        if ours.table != theirs.table && follows_from(ours) == follows_from(theirs) {
            differences.0.push(format!(
                "service {name}: the tables differ (ours {}, theirs {}) although backends, weights and availabilities are \
                 equal: ours is made by lbd {}, theirs by lbd {}; run the same version on both nodes",
                ours.table, theirs.table, our_node.version, their_node.version
            ));
        }
        let is_explained =
            differences.0.len() > found || our_node.hash_seed != their_node.hash_seed;
        if ours.inputs != theirs.inputs && !is_explained {
            differences.0.push(format!(
                "service {name}: the inputs differ (ours {}, theirs {}) in something that the digests do not show: ours is \
                 made by lbd {}, theirs by lbd {}",
                ours.inputs, theirs.inputs, our_node.version, their_node.version
            ));
        }
    }
    differences.0
}

/// Sentences found so far.
#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn check<T: PartialEq + Display>(&mut self, what: &str, ours: &T, theirs: &T) {
        if ours != theirs {
            self.0
                .push(format!("{what} differs: ours {ours}, theirs {theirs}"));
        }
    }

    fn only(&mut self, what: &str, ours: bool) {
        let whose = if ours { "ours" } else { "theirs" };
        self.0.push(format!("{what} is only in {whose}"));
    }

    fn service(&mut self, ours: &ServiceDigest, theirs: &ServiceDigest) {
        let name = &ours.name;
        let of = |field: &str| format!("service {name}: {field}");
        self.check(&of("address"), &ours.address, &theirs.address);
        self.check(&of("protocol"), &ours.protocol, &theirs.protocol);
        self.check(&of("port"), &ours.port, &theirs.port);
        self.check(&of("mode"), &ours.mode, &theirs.mode);
        self.check(&of("hash"), &ours.hash, &theirs.hash);
        self.check(&of("quic"), &known(&ours.quic), &known(&theirs.quic));
        let (a, b) = (&ours.flows, &theirs.flows);
        self.check(&of("tracking"), &a.tracking, &b.tracking);
        self.check(&of("on_down"), &a.on_down, &b.on_down);
        self.check(
            &of("drain_timeout (ms)"),
            &a.drain_timeout_ms,
            &b.drain_timeout_ms,
        );
        self.check(&of("udp_settle (ms)"), &a.udp_settle_ms, &b.udp_settle_ms);
        self.check(&of("slow_start (ms)"), &a.slow_start_ms, &b.slow_start_ms);
        let pairs = pairs(&ours.backends, &theirs.backends, |backend| &backend.name);
        for (backend, pair) in pairs {
            let what = format!("service {name}: backend {backend}");
            match pair {
                (Some(ours), Some(theirs)) => self.backend(&what, ours, theirs),
                (ours, _) => self.only(&what, ours.is_some()),
            }
        }
    }

    fn backend(&mut self, what: &str, ours: &BackendDigest, theirs: &BackendDigest) {
        let of = |field: &str| format!("{what}: {field}");
        self.check(&of("address"), &ours.address, &theirs.address);
        self.check(&of("weight"), &ours.weight, &theirs.weight);
        self.check(&of("drain"), &ours.drain, &theirs.drain);
        self.check(
            &of("server_id"),
            &known(&ours.server_id),
            &known(&theirs.server_id),
        );
        self.check(
            &of("availability (of 65536)"),
            &ours.availability,
            &theirs.availability,
        );
    }
}

fn known(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

/// What a table follows from.
fn follows_from(service: &ServiceDigest) -> Vec<(&str, u16, u32)> {
    let with_weight = service.backends.iter().filter(|b| b.weight > 0);
    with_weight
        .map(|backend| (backend.name.as_str(), backend.weight, backend.availability))
        .collect()
}

type Pair<'a, T> = (Option<&'a T>, Option<&'a T>);

/// What has the same name on both sides, in order of name.
fn pairs<'a, T>(
    ours: &'a [T],
    theirs: &'a [T],
    name: impl Fn(&T) -> &String,
) -> BTreeMap<String, Pair<'a, T>> {
    let mut pairs: BTreeMap<String, Pair<'a, T>> = BTreeMap::new();
    for one in ours {
        pairs.entry(name(one).clone()).or_default().0 = Some(one);
    }
    for one in theirs {
        pairs.entry(name(one).clone()).or_default().1 = Some(one);
    }
    pairs
}
