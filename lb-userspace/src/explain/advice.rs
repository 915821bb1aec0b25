//! What to do about each verdict, for people who wonder why a packet was not forwarded.

use lb_common::verdict::Verdict;

/// What to do when packets get this verdict and should not; empty when there is nothing to do.
pub const fn advice(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forwarded => "",
        Verdict::PassNotIp => "This host's own business: ARP and the like must pass.",
        Verdict::PassNotTcpUdp => {
            "The kernel handles it as if there were no balancer; give this host the address if it should answer."
        }
        Verdict::PassTruncated => {
            "Look at who sends it: the packet is shorter than its own headers say. In a capture, raise the snap length."
        }
        Verdict::PassMalformed => {
            "Look at who sends it: no service can be told from such a header."
        }
        Verdict::PassFragment => {
            "Nothing, unless the whole packet was for a service: then avoid fragments of it."
        }
        Verdict::PassNoService => {
            "If it should be balanced, add the service (`lbctl service add`) or compare address, protocol and port with \
             `lbctl service list`."
        }
        Verdict::DropFragment => {
            "The first fragment of the datagram has not come, or came later: look for loss, or for ways of different length \
             between sender and balancer. Datagrams below the path's MTU are not fragmented."
        }
        Verdict::DropShortFragment => {
            "Look at who sends it: no stack cuts a datagram before its ports; it may be an attack."
        }
        Verdict::DropEcho => {
            "More pings than are answered (1,000 a second and CPU): look at who sends them."
        }
        Verdict::DropNoBackend => {
            "`lbctl backend list` says why no backend gets traffic; with `--when-all-down open` a service goes on when \
             all probes fail."
        }
        Verdict::DropNoNextHop => {
            "See the backend's next hop in `lbctl backend list`: its route, its gateway's neighbour entry (`ip neigh`) or \
             its link is missing."
        }
        Verdict::DropWrongInterface => {
            "Add the interface that the backend is behind to `interfaces` in the node's configuration; `lbctl status` says \
             what is attached where, and in which mode: all must be in the same."
        }
        Verdict::DropTooBig => {
            "Its sender could not be told the size that fits: it was an ICMP error or a fragment, or there were more such \
             packets than are answered. Raise the MTU between balancer and backend by the outer headers, or lower the MSS."
        }
        Verdict::DropNoHeadroom => {
            "The network driver leaves no room for an outer header: use `attach: generic` for the interface, or mode `l2`."
        }
        Verdict::DropBadState => {
            "A defect: please report it with `lbctl status` and lbd's log. Restarting lbd writes the maps anew."
        }
        Verdict::PassExtensionHeaders => {
            "Look at who sends it: more than six extension headers, or a routing header, is not balanced."
        }
        Verdict::AnsweredTooBig => {
            "Nothing if the sender obeys. If it does not, ICMP is filtered on the way to it: let it through, or raise the \
             MTU between balancer and backend."
        }
        Verdict::AnsweredEcho => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::verdict::Action;

    #[test]
    fn what_is_dropped_has_advice() {
        for verdict in Verdict::ALL {
            assert!(
                verdict.action() != Action::Drop || !advice(*verdict).is_empty(),
                "{verdict:?}"
            );
        }
    }
}
