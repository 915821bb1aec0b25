//! How much work the verifier has with each program: the first thing to grow out of bounds when a program grows, and
//! different on every kernel.

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramInfo},
};
use lb_common::{decap, maps, trace};
use lb_tests::require;
use lb_userspace::dataplane::object::{BALANCER, DECAP};
use std::io::Write;

/// Most instructions that the verifier may go through for any program, on any kernel that is tested. The kernel's own limit
/// is a million (BPF_COMPLEXITY_LIMIT_INSNS). The most today is 532,000, for jumbo frames on 6.18; 6.12 needs a quarter of
/// that. Kernels that are not tested may need more: hence the room to the limit.
const BUDGET: u32 = 600_000;

#[test]
fn every_program_is_verified_within_the_budget() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for (form, name) in [
        (trace::OFF, ""),
        (trace::TRACE, "+trace"),
        (trace::EXPLAIN, "+explain"),
    ] {
        let mut balancer = EbpfLoader::new()
            .override_global(maps::LOG_LEVEL, &0_u8, true)
            .override_global(maps::TRACE, &form, true)
            .load(BALANCER)?;
        check(&mut balancer, name)?;
    }
    // With all its checks, which are dead code without.
    let checks = decap::CHECK_HOST | decap::CHECK_SOURCE | decap::CHECK_VIP | decap::SECOND_CHANCE;
    let mut backends = EbpfLoader::new()
        .override_global(decap::CHECKS, &checks, true)
        .load(DECAP)?;
    check(&mut backends, "")
}

/// Loads every program of an object.
fn check(object: &mut Ebpf, form: &str) -> Result<()> {
    for (name, program) in object.programs_mut() {
        let info = load(program).with_context(|| format!("the verifier refuses {name}{form}"))?;
        // Kernels before 5.16 do not say.
        let Some(count) = info.verified_instruction_count() else {
            continue;
        };
        report(&format!("{name}{form}"), count)?;
        assert!(
            count <= BUDGET,
            "{name}{form}: {count} instructions, the budget is {BUDGET}"
        );
    }
    Ok(())
}

fn load(program: &mut Program) -> Result<ProgramInfo> {
    match program {
        Program::Xdp(program) => {
            program.load()?;
            Ok(program.info()?)
        }
        Program::SchedClassifier(program) => {
            program.load()?;
            Ok(program.info()?)
        }
        other => anyhow::bail!("a program of an unexpected type: {:?}", other.prog_type()),
    }
}

/// Says it past libtest's capture, in the form that `cargo xtask test` and `cargo xtask vm` make a table of.
fn report(program: &str, count: u32) -> Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    writeln!(
        std::io::stdout(),
        "\nverified instructions: {program} {count} of {BUDGET} on {}",
        release.trim()
    )?;
    Ok(())
}
