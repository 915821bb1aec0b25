//! What became of a packet, and why: one enum for the program, its counters, the API, the CLI and the metrics.

/// What XDP does with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sent to a backend.
    Forward,
    /// Left to the kernel, byte for byte as it came.
    Pass,
    /// Dropped.
    Drop,
    /// Answered by the balancer itself: the answer leaves by the interface the packet came in on.
    Answer,
}

macro_rules! verdicts {
    ($($(#[doc = $doc:literal])+ $variant:ident = $value:literal, $action:ident, $name:literal;)+) => {
        /// Outcome of one packet; its number is its index in the verdict counters.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Verdict {
            $($(#[doc = $doc])+ $variant = $value,)+
        }

        impl Verdict {
            /// All verdicts, in the order of their numbers.
            pub const ALL: &'static [Verdict] = &[$(Verdict::$variant),+];

            /// The verdict with this number; [`Verdict::DropBadState`] if there is none.
            #[inline(always)]
            pub const fn from_number(number: u32) -> Self {
                match number {
                    $($value => Verdict::$variant,)+
                    _ => Verdict::DropBadState,
                }
            }

            /// The action this verdict stands for.
            #[inline(always)]
            pub const fn action(self) -> Action {
                match self {
                    $(Verdict::$variant => Action::$action,)+
                }
            }

            /// Stable name, as in metrics, JSON and `lbctl stats`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Verdict::$variant => $name,)+
                }
            }

            /// What it means, for people.
            pub const fn description(self) -> &'static str {
                match self {
                    $(Verdict::$variant => concat!($($doc),+).trim_ascii(),)+
                }
            }
        }
    };
}

verdicts! {
    /// Sent to a backend.
    Forwarded = 0, Forward, "forwarded";
    /// Neither IPv4 nor IPv6 (ARP, LLDP, more than two VLAN tags, ...).
    PassNotIp = 1, Pass, "pass_not_ip";
    /// Neither TCP nor UDP, nor an ICMP error about one of them (ping, ESP, ...).
    PassNotTcpUdp = 2, Pass, "pass_not_tcp_udp";
    /// Cut off before the end of the headers that name its service.
    PassTruncated = 3, Pass, "pass_truncated";
    /// An IP header with an impossible version, header length or total length.
    PassMalformed = 4, Pass, "pass_malformed";
    /// A fragment of a datagram that is for no service.
    PassFragment = 5, Pass, "pass_fragment";
    /// TCP or UDP, or an ICMP error about it, for an address, protocol and port that is no service's.
    PassNoService = 6, Pass, "pass_no_service";
    /// A later fragment for a service's address, of a datagram whose first fragment has not been seen, or was not forwarded.
    DropFragment = 7, Drop, "drop_fragment";
    /// The slot has no backend: none is available, or the service is closed because all are down.
    DropNoBackend = 8, Drop, "drop_no_backend";
    /// The backend's next hop has no MAC address at the moment.
    DropNoNextHop = 9, Drop, "drop_no_next_hop";
    /// The backend is behind another interface than the one the packet came in on, and packets cannot be redirected there:
    /// it is not among the node's interfaces, or takes only what comes in on interfaces in generic mode.
    DropWrongInterface = 10, Drop, "drop_wrong_interface";
    /// Larger than the way to the backend takes, once encapsulated, and not to be answered: an ICMP error, a later fragment, a
    /// source that is no host's, or beyond the rate of answers.
    DropTooBig = 11, Drop, "drop_too_big";
    /// The driver left no room in front of the packet for the outer header.
    DropNoHeadroom = 12, Drop, "drop_no_headroom";
    /// The service's slot table or the backend's entry is missing or unreadable: a defect, or maps of another version.
    DropBadState = 13, Drop, "drop_bad_state";
    /// IPv6 with more than six extension headers or 256 bytes of them, or with a routing header that sends it on.
    PassExtensionHeaders = 14, Pass, "pass_extension_headers";
    /// Larger than the way to the backend takes, once encapsulated: the client was told the size that fits.
    AnsweredTooBig = 15, Answer, "answered_too_big";
    /// A ping to a service's address, answered.
    AnsweredEcho = 16, Answer, "answered_echo";
    /// The first fragment of a datagram for a service's address ends before its ports.
    DropShortFragment = 17, Drop, "drop_short_fragment";
    /// A ping to a service's address that would be answered, beyond the rate of answers.
    DropEcho = 18, Drop, "drop_echo";
}

impl Verdict {
    /// Number of verdicts: entries of the verdict counters.
    pub const COUNT: u32 = Self::ALL.len() as u32;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_names_tell_the_action() {
        for (i, verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(*verdict as usize, i);
            let prefix = match verdict.action() {
                Action::Forward => "forwarded",
                Action::Pass => "pass_",
                Action::Drop => "drop_",
                Action::Answer => "answered_",
            };
            assert!(verdict.name().starts_with(prefix), "{verdict:?}");
            assert!(!verdict.description().starts_with(' '));
        }
    }
}
