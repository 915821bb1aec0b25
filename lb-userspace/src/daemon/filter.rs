//! Which packets a trace is to show: from the words of a request to the program's filter.

use super::core::Core;
use crate::{
    api::path::TraceRequest, dataplane::DataPlane, plan::target::service_key, problem::Problem,
};
use lb_common::{
    address::Address,
    trace::Filter,
    verdict::{Action, Verdict},
};
use std::net::IpAddr;

/// Packets a second on a CPU, unless the client says otherwise.
const LIMIT: u32 = 1_000;

impl<P: DataPlane> Core<P> {
    /// What the program is to trace.
    pub(super) fn filter(&self, request: &TraceRequest) -> Result<Filter, Problem> {
        let service = match &request.service {
            None => Filter::ANY_SERVICE,
            Some(name) => self.service_called(name)?,
        };
        let (source, mask) = match &request.source {
            None => Default::default(),
            Some(text) => prefix(text)?,
        };
        let sample = request.sample.unwrap_or(1);
        if sample == 0 {
            let hint = "choose 1 for every packet, 100 for one in a hundred";
            return Err(Problem::new("sample", sample, "not a share", hint));
        }
        Ok(Filter {
            source,
            mask,
            verdicts: verdicts(request.reason.as_deref().unwrap_or("all"))?,
            service,
            sample,
            limit: request.limit.unwrap_or(LIMIT),
            zero: 0,
        })
    }

    fn service_called(&self, name: &str) -> Result<u32, Problem> {
        let mut services = self.state.services.values();
        let index = services
            .find(|service| service.name.to_string() == name)
            .and_then(|service| self.mirror.service_index(&service_key(service)));
        index.ok_or_else(|| {
            Problem::new(
                "service",
                name,
                "no such service in the data plane",
                "`lbctl service list` shows all",
            )
        })
    }
}

/// Address and mask of a prefix, or of a single address.
fn prefix(text: &str) -> Result<(Address, Address), Problem> {
    let refused = || {
        Problem::new(
            "source",
            text,
            "neither an address nor a prefix",
            "give one such as 198.51.100.9, 198.51.100.0/24 or 2001:db8::/32",
        )
    };
    let (address, bits) = text
        .split_once('/')
        .map_or((text, None), |(address, bits)| (address, Some(bits)));
    let address: IpAddr = address.parse().map_err(|_| refused())?;
    let most: u32 = if address.is_ipv4() { 32 } else { 128 };
    let bits = match bits {
        None => most,
        Some(bits) => bits
            .parse()
            .ok()
            .filter(|bits| *bits <= most)
            .ok_or_else(refused)?,
    };
    // IPv4 is held as the last 32 bits of a mapped IPv6 address.
    let mask = u128::MAX.checked_shl(most - bits).unwrap_or(0);
    let mask = Address::from(IpAddr::from(mask.to_be_bytes()));
    let mut source = Address::from(address);
    for (word, mask) in source.0.iter_mut().zip(mask.0) {
        *word &= mask;
    }
    Ok((source, mask))
}

/// A bit for each verdict that a list names.
fn verdicts(text: &str) -> Result<u64, Problem> {
    let mut wanted = 0;
    for word in text.split(',').map(str::trim) {
        let named = |verdict: &&Verdict| match word {
            "all" => true,
            "drops" => verdict.action() == Action::Drop,
            "passes" => verdict.action() == Action::Pass,
            name => verdict.name() == name,
        };
        let bits = Verdict::ALL
            .iter()
            .filter(named)
            .map(|verdict| 1_u64 << *verdict as u32);
        let bits: u64 = bits.sum();
        if bits == 0 {
            return Err(Problem::new(
                "reason",
                word,
                "no such verdict",
                "choose all, drops, passes, or names from `lbctl stats --all`, separated by commas",
            ));
        }
        wanted |= bits;
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::trace::Record;

    #[test]
    fn prefixes_are_those_of_both_families() {
        let wants = |text: &str, address: &str| {
            let (source, mask) = prefix(text).unwrap();
            let record = Record {
                source: Address::from(address.parse::<IpAddr>().unwrap()),
                stages: Record::IP,
                ..Record::default()
            };
            let filter = Filter {
                source,
                mask,
                verdicts: u64::MAX,
                service: Filter::ANY_SERVICE,
                ..Filter::default()
            };
            filter.wants(&record)
        };
        for (text, inside, outside) in [
            ("198.51.100.9", "198.51.100.9", "198.51.100.8"),
            ("198.51.100.77/25", "198.51.100.1", "198.51.100.129"),
            ("0.0.0.0/0", "9.9.9.9", "2001:db8::1"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::1"),
        ] {
            assert!(wants(text, inside) && !wants(text, outside), "{text}");
        }
        assert!(wants("::/0", "9.9.9.9") && wants("::/0", "::1"));
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0",
            "fd00::/129",
            "www",
        ] {
            assert_eq!(prefix(text).unwrap_err().field, "source", "{text}");
        }
    }

    #[test]
    fn reasons_are_verdicts_or_many() {
        let bit = |verdict: Verdict| 1_u64 << verdict as u32;
        assert_eq!(verdicts("all").unwrap().count_ones(), Verdict::COUNT);
        let two = bit(Verdict::DropTooBig) | bit(Verdict::Forwarded);
        assert_eq!(verdicts("drop_too_big, forwarded"), Ok(two));
        let drops = verdicts("drops").unwrap();
        assert_ne!(drops & bit(Verdict::DropNoBackend), 0);
        assert_eq!(drops & verdicts("passes").unwrap(), 0);
        for text in ["", "drop", "drops,", "Forwarded"] {
            assert_eq!(verdicts(text).unwrap_err().field, "reason", "{text}");
        }
    }
}
