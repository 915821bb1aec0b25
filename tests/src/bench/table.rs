//! What a slot table takes to build: the product's, and beside it the pseudocode of the paper written plainly.

use super::figure::{Figure, Figures};
use anyhow::Result;
use lb_common::limits::SLOTS;
use lb_userspace::maglev::{self, Member};
use std::{hint::black_box, time::Instant};
use xxhash_rust::xxh64::xxh64;

const ROUNDS: usize = 15;
const BACKENDS: [usize; 3] = [10, 100, 1_000];

/// Builds tables of three sizes both ways, in turn.
pub fn run() -> Result<Figures> {
    let mut figures = Figures::new();
    for backends in BACKENDS {
        let names: Vec<String> = (0..backends).map(|n| format!("backend-{n}")).collect();
        let members = members(&names);
        let (mut ours, mut plain) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(micros(|| drop(black_box(maglev::table(&members)))));
            plain.push(micros(|| drop(black_box(paper(&names)))));
        }
        figures.insert(format!("table.build.{backends}"), Figure::new(ours, "µs"));
        figures.insert(format!("table.paper.{backends}"), Figure::new(plain, "µs"));
    }
    Ok(figures)
}

/// Members of one weight, with owners 1, 2, ...
pub fn members(names: &[String]) -> Vec<Member<'_>> {
    let numbered = names.iter().zip(1..);
    numbered
        .map(|(name, owner)| Member {
            name,
            weight: 100,
            owner,
        })
        .collect()
}

/// Microseconds that something takes.
pub(super) fn micros(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e6
}

/// Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4, pseudocode 1. Where it
/// looks a permutation up, the element is calculated: written out for 1,000 backends, permutations alone take some 300 ms.
pub fn paper(names: &[String]) -> Vec<usize> {
    let (n, m) = (names.len(), SLOTS as usize);
    let hash = |seed: u64, below: usize| {
        move |name: &String| xxh64(name.as_bytes(), seed) as usize % below
    };
    let offset: Vec<usize> = names.iter().map(hash(1, m)).collect();
    let skip: Vec<usize> = names
        .iter()
        .map(hash(2, m - 1))
        .map(|skip| skip + 1)
        .collect();
    let permutation = |i: usize, j: usize| (offset[i] + j * skip[i]) % m;
    let mut next = vec![0; n];
    let mut entry = vec![usize::MAX; m];
    let mut filled = 0;
    loop {
        for (i, next) in next.iter_mut().enumerate() {
            let mut c = permutation(i, *next);
            while entry[c] != usize::MAX {
                *next += 1;
                c = permutation(i, *next);
            }
            entry[c] = i;
            *next += 1;
            filled += 1;
            if filled == m {
                return entry;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_table_is_one() {
        let names: Vec<String> = (0..7).map(|n| format!("b{n}")).collect();
        let table = paper(&names);
        assert_eq!(table.len(), SLOTS as usize);
        for backend in 0..7 {
            let slots = table.iter().filter(|owner| **owner == backend).count();
            assert!((9_362..=9_363).contains(&slots), "{slots}");
        }
    }
}
