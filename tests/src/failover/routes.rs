//! The router's route to the VIP, as its kernel tells of every change.

use crate::{
    moment,
    netns::Namespace,
    process::Process,
    topology::{VIP_V4, balancer_v4},
    wait::wait_until,
};
use anyhow::{Context, Result};
use std::{collections::BTreeSet, net::Ipv4Addr, path::Path, time::Duration};

/// A route as it was from a moment on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    /// Time of day in seconds.
    pub(super) at: f64,
    /// Its next hops; none: there was no route.
    pub(super) hops: BTreeSet<Ipv4Addr>,
}

impl Change {
    fn leads_to(&self, number: u8) -> bool {
        self.hops.contains(&balancer_v4(number))
    }
}

/// What the kernel has told so far.
#[derive(Debug)]
pub(super) struct Routes(Process);

/// A place in what the kernel tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark(usize);

impl Routes {
    /// Begins to listen.
    ///
    /// # Errors
    /// When `ip` cannot be started.
    pub(super) fn watch(router: &Namespace, directory: &Path) -> Result<Self> {
        let mut command = router.command("ip");
        command
            .args(["-4", "-o", "-ts", "monitor", "route"])
            .env("TZ", "UTC");
        Process::start("ip monitor", command, &directory.join("routes.log")).map(Self)
    }

    /// What has been told until now.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.0.log().len())
    }

    fn since(&self, mark: Mark) -> Vec<Change> {
        changes(self.0.log().get(mark.0..).unwrap_or_default())
    }

    /// Whether the route leads to balancer `number` now.
    pub(super) fn leads_to(&self, number: u8) -> bool {
        let last = self.since(Mark(0)).pop();
        last.is_some_and(|change| change.leads_to(number))
    }

    /// How often the route has led elsewhere since.
    pub(super) fn losses(&self, number: u8, mark: Mark) -> usize {
        let changes = self.since(mark);
        changes.iter().filter(|one| !one.leads_to(number)).count()
    }

    /// Waits until the route leads to balancer `number`, or does no more; when that was.
    ///
    /// # Errors
    /// When it does not come about in time.
    pub(super) fn wait(&self, number: u8, there: bool, mark: Mark, limit: Duration) -> Result<f64> {
        let word = if there { "lead" } else { "lead no more" };
        let what = format!("the router's route to {word} to balancer {number}");
        let seen = || {
            let changes = self.since(mark).into_iter();
            let mut fitting = changes.filter(|change| change.leads_to(number) == there);
            Ok(fitting.next().map(|change| change.at))
        };
        wait_until(&what, limit, seen).with_context(|| format!("what was seen: {}", self.0.log()))
    }
}

/// The changes of the route to the VIP in what `ip -o -ts monitor route` has written.
fn changes(log: &str) -> Vec<Change> {
    log.lines().filter_map(change).collect()
}

fn change(line: &str) -> Option<Change> {
    let mut words = line.split_once("] ")?.1.split_whitespace().peekable();
    let is_gone = words.next_if_eq(&"Deleted").is_some();
    if words.next()?.parse() != Ok(VIP_V4) {
        return None;
    }
    let mut hops = BTreeSet::new();
    while let Some(word) = words.next() {
        if word == "via" && !is_gone {
            hops.extend(words.next().and_then(|hop| hop.parse::<Ipv4Addr>().ok()));
        }
    }
    let at = moment::in_line(line)?;
    Some(Change { at, hops })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_one_hop_of_several_and_of_none_are_told_apart() {
        let log = "[2026-11-29T21:53:40.5] 10.0.0.1 nhid 12 via 10.2.0.2 dev balancer proto bgp metric 20 \n\
                   [2026-11-29T21:53:41.0] 10.0.0.1 proto bird metric 32 \\\tnexthop via 10.2.0.2 dev balancer weight 1 \
                   \\\tnexthop via 10.2.1.2 dev balancer-2 weight 1 \n\
                   [2026-11-29T21:53:42.0] 10.0.0.2 via 10.2.0.2 dev balancer proto bird metric 32 \n\
                   [2026-11-29T21:53:43.0] Deleted 10.0.0.1 via 10.2.1.2 dev balancer-2 proto bird metric 32 \n";
        let expected: [(f64, &[u8]); 3] = [(40.5, &[1]), (41.0, &[1, 2]), (43.0, &[])];
        let found = changes(log);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (change, (second, numbers)) in found.iter().zip(expected) {
            let hops: BTreeSet<Ipv4Addr> = numbers.iter().copied().map(balancer_v4).collect();
            assert!((change.at - (21.0 * 3_600.0 + 53.0 * 60.0 + second)).abs() < 1e-6);
            assert_eq!(change.hops, hops);
        }
    }
}
