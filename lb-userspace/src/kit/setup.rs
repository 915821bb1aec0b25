//! The commands that make a plain Linux host a backend, as a shell script that says why each is needed.
//!
//! **Invariant.** Pure, and the script can be run a second time.

use super::Need;
use crate::spec::mode_name;
use lb_common::backend::Mode;
use std::fmt::Write;

/// Largest packet from outside that has to fit, in bytes.
pub const OUTSIDE_MTU: u32 = 1_500;

/// The script for a backend of this name.
pub fn script(name: &str, need: &Need) -> String {
    let mut text = String::new();
    let mut step = |why: &str, commands: &[String]| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n# {why}");
        for command in commands {
            let _ = writeln!(text, "{command}");
        }
    };
    if need.mode == Mode::Gue {
        step(
            "GUE: takes the UDP and GUE headers away.",
            &[listener(need)],
        );
    }
    if let Some(device) = tunnel(need) {
        step("Takes the outer IP header away.", &device);
    }
    let what = if need.vip.is_address() {
        "The service's address, on lo: to be answered from, and not to be announced."
    } else {
        "All the service's addresses are this host's own: to be answered from, and not to be announced."
    };
    step(what, &[need.own_vip()]);
    if need.vip.is_ipv4() {
        step(
            "Requests for the service's MAC address are the balancer's, and no question is asked from its address.",
            &[
                "sysctl -w net.ipv4.conf.all.arp_ignore=1".into(),
                "sysctl -w net.ipv4.conf.all.arp_announce=2".into(),
            ],
        );
    }
    if let (Some(device), true) = (need.device(), need.vip.is_ipv4()) {
        step(
            "Clients' packets come out of the tunnel and are answered by another way: no reverse-path filter. The larger \
             of the two values counts.",
            &[
                "sysctl -w net.ipv4.conf.all.rp_filter=0".into(),
                format!("sysctl -w net.ipv4.conf.{}.rp_filter=0", device.name),
            ],
        );
    }
    if need.overhead() > 0 {
        let (mtu, segment) = (OUTSIDE_MTU + need.overhead(), segment(need));
        let family = if need.vip.is_ipv4() { 4 } else { 6 };
        step(
            &format!(
                "Packets come with up to {} bytes more: where the network takes them, let this host's interface take {mtu} bytes,",
                need.overhead()
            ),
            &[
                format!("#   ip link set dev INTERFACE mtu {mtu}"),
                format!(
                    "# and where it does not, ask clients for smaller segments: \
                     ip -{family} route change $(ip -{family} route show default | head -n 1) advmss {segment}"
                ),
            ],
        );
    }
    let title = format!(
        "# Makes {name} ({}) a backend of {}, mode {}. Run it as root; it lasts until the next start.\n# The service itself listens on {} or on all addresses.\n",
        need.address,
        need.vip,
        mode_name(need.mode),
        need.vip,
    );
    format!("{title}set -e\n{text}")
}

/// Largest TCP segment that fits into [`OUTSIDE_MTU`] bytes with the outer headers.
pub fn segment(need: &Need) -> u32 {
    let inner = if need.vip.is_ipv4() { 40 } else { 60 };
    OUTSIDE_MTU - need.overhead() - inner
}

/// The command that makes the kernel take GUE; none is needed if it does already.
pub fn listener(need: &Need) -> String {
    let port = need.gue_port;
    if need.address.is_ipv4() {
        // What is for IPv6 is shown with -6.
        format!(
            "ip fou show | grep 'port {port} gue' | grep -qv -e -6 || ip fou add port {port} gue"
        )
    } else {
        format!("ip fou show | grep -q 'port {port} gue -6' || ip fou add port {port} gue -6")
    }
}

/// The commands that make the tunnel device.
pub fn tunnel(need: &Need) -> Option<Vec<String>> {
    let device = need.device()?;
    let (name, kind, options) = (device.name, device.kind, device.options);
    let local = need.address;
    Some(vec![
        format!(
            "ip link show dev {name} >/dev/null 2>&1 || ip link add {name} type {kind} local {local} remote any{options}"
        ),
        format!("ip link set dev {name} up"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(vip: &str, mode: Mode, address: &str) -> String {
        let need = Need {
            vip: vip.parse().unwrap(),
            mode,
            address: address.parse().unwrap(),
            gue_port: 6080,
        };
        script("web-1", &need)
    }

    #[test]
    fn every_pair_of_families_has_its_device() {
        for (vip, address, device) in [
            (
                "192.0.2.1",
                "198.51.100.11",
                "gw-ipip type ipip local 198.51.100.11 remote any\n",
            ),
            (
                "2001:db8::1",
                "198.51.100.11",
                "gw-sit type sit local 198.51.100.11 remote any\n",
            ),
            (
                "192.0.2.1",
                "2001:db8::11",
                "type ip6tnl local 2001:db8::11 remote any mode any\n",
            ),
            (
                "2001:db8::1",
                "2001:db8::11",
                "type ip6tnl local 2001:db8::11 remote any mode any\n",
            ),
        ] {
            for mode in [Mode::Ipip, Mode::Gue] {
                let script = of(vip, mode, address);
                assert!(script.contains(device), "{script}");
                assert_eq!(
                    script.contains("ip fou add port 6080 gue"),
                    mode == Mode::Gue
                );
            }
        }
    }

    #[test]
    fn a_whole_prefix_is_made_local() {
        for (vip, command) in [
            (
                "192.0.2.0/24",
                "\nip -4 route replace local 192.0.2.0/24 dev lo\n",
            ),
            (
                "2001:db8::/64",
                "\nip -6 route replace local 2001:db8::/64 dev lo\n",
            ),
        ] {
            let script = of(vip, Mode::Ipip, "198.51.100.11");
            assert!(script.contains(command), "{script}");
            assert!(!script.contains("ip address replace"), "{script}");
        }
    }

    #[test]
    fn l2_needs_no_tunnel_and_no_room() {
        let script = of("192.0.2.1", Mode::L2, "198.51.100.11");
        assert!(script.contains("arp_ignore=1") && script.contains("192.0.2.1/32 dev lo"));
        for unneeded in ["type ", "rp_filter", "mtu", "fou"] {
            assert!(!script.contains(unneeded), "{script}");
        }
    }

    #[test]
    fn the_size_of_segments_leaves_room_for_every_header() {
        for (vip, mode, address, expected) in [
            ("192.0.2.1", Mode::Ipip, "198.51.100.11", 1_440),
            ("2001:db8::1", Mode::Ipip, "2001:db8::11", 1_400),
            ("192.0.2.1", Mode::Gue, "198.51.100.11", 1_420),
        ] {
            assert!(of(vip, mode, address).contains(&format!("advmss {expected}\n")));
        }
    }
}
