//! BPF_PROG_TEST_RUN without a copy or an allocation of ours: a call is little more than the kernel's share of it.

use crate::prog_run::INTERFACE;
use anyhow::{Context, Result, bail};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// Command of bpf(2).
const BPF_PROG_TEST_RUN: libc::c_long = 10;
/// Flag of that command: what the program answers is done.
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
/// Room for the largest outer header.
const GROWTH: usize = 128;
/// Longest frame that a test run takes in one page: room for XDP's head (256 bytes) and the kernel's tail are needed.
pub const LONGEST: usize = 3_500;

/// The part of `union bpf_attr` of the kernel's bpf.h that this command takes.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// Runs a program on frames that come in on [`INTERFACE`].
pub struct Runner {
    out: Vec<u8>,
}

impl Default for Runner {
    /// One with a buffer of its own.
    fn default() -> Self {
        Self {
            out: vec![0; LONGEST + GROWTH],
        }
    }
}

impl Runner {
    /// What the program answers (`enum xdp_action`), and the frame as it left it.
    pub fn run(&mut self, program: BorrowedFd<'_>, frame: &[u8]) -> Result<(u32, &[u8])> {
        let attributes = self.repeat(program, frame, 1)?;
        let out = self.out.get(..attributes.data_size_out as usize);
        Ok((
            attributes.retval,
            out.context("a frame grew beyond the buffer")?,
        ))
    }

    /// What the program answers the last time of `repeat`, and the mean time it takes, in nanoseconds. The frame is not reset
    /// in between.
    pub fn time(
        &mut self,
        program: BorrowedFd<'_>,
        frame: &[u8],
        repeat: u32,
    ) -> Result<(u32, u32)> {
        let attributes = self.repeat(program, frame, repeat)?;
        Ok((attributes.retval, attributes.duration))
    }

    fn repeat(&mut self, program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> Result<Attributes> {
        if frame.len() > LONGEST {
            bail!(
                "a frame of {} bytes is too long for a test run",
                frame.len()
            );
        }
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: [u32; 6] = [0, frame.len() as u32, 0, INTERFACE, 0, 0];
        let mut attributes = Attributes {
            prog_fd: program.as_raw_fd() as u32,
            data_size_in: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            data_size_out: self.out.len() as u32,
            data_out: self.out.as_mut_ptr() as u64,
            ctx_size_in: size_of_val(&context) as u32,
            ctx_in: context.as_ptr() as u64,
            repeat,
            ..Attributes::default()
        };
        // SAFETY: the frame, the context and `out` are as long as is said here, and outlive the call.
        unsafe { call(&mut attributes) }?;
        Ok(attributes)
    }
}

/// A program and what it makes frames of, which are sent for real: what it answers is done, in the network namespace of
/// the thread that calls.
pub struct Live<'a> {
    /// The program.
    pub program: BorrowedFd<'a>,
    /// What frames are at first. Their memory is used again as it comes back.
    pub frame: &'a [u8],
    /// Frames that are made before the first of them is sent on, 1 to 256.
    pub batch: u32,
}

impl Live<'_> {
    /// Sends so many frames.
    pub fn send(&self, frames: u32) -> Result<()> {
        let mut attributes = Attributes {
            prog_fd: self.program.as_raw_fd() as u32,
            data_size_in: self.frame.len() as u32,
            data_in: self.frame.as_ptr() as u64,
            repeat: frames,
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            batch_size: self.batch,
            ..Attributes::default()
        };
        // SAFETY: the frame is as long as is said here, and outlives the call; nothing else is read or written.
        unsafe { call(&mut attributes) }
    }
}

/// Gives the calling thread one CPU, before everything else that would run there (sched(7), SCHED_FIFO).
pub fn take_cpu(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)
        .with_context(|| format!("cannot run on CPU {cpu}"))?;
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads the parameter, which outlives the call, and changes the calling thread alone.
    let status = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    if status != 0 {
        let error = io::Error::last_os_error();
        return Err(error).context("cannot run before all else (CAP_SYS_NICE)");
    }
    Ok(())
}

/// Makes the kernel do what the attributes say.
///
/// # Safety
/// Each address in them is that of so many bytes as the length beside it says: to read, or to write where it is one of output.
unsafe fn call(attributes: &mut Attributes) -> Result<()> {
    let length = attributes.data_size_in;
    // SAFETY: the kernel reads and writes the attributes, which are as long as is said here, and what the caller
    // answers for.
    let status = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut *attributes,
            size_of::<Attributes>(),
        )
    };
    if status != 0 {
        let error = io::Error::last_os_error();
        return Err(error).with_context(|| format!("running a frame of {length} bytes"));
    }
    Ok(())
}
