//! The bpf(2) commands that aya does not offer, or not in the way they are needed here. Nothing else in this crate
//! makes system calls on BPF objects by hand.

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info};
use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// Creates the link that attaches an XDP program to an interface. `flags` are `XDP_FLAGS_*`.
///
/// aya's own attach falls back to an attachment without a link when the kernel answers EINVAL. Such a one cannot be
/// pinned, so it would not outlive the daemon.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    interface: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = number(program);
    attr.link_create.__bindgen_anon_2.target_ifindex = interface;
    attr.link_create.attach_type = bpf_attach_type::BPF_XDP as u32;
    attr.link_create.flags = flags;
    // SAFETY: the attributes hold no pointers.
    let fd = unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr) }?;
    // SAFETY: BPF_LINK_CREATE returns a new file descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Replaces the program of a link atomically: each packet meets the old program or the new one.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_update.link_fd = number(link);
    attr.link_update.__bindgen_anon_1.new_prog_fd = number(program);
    // SAFETY: the attributes hold no pointers.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Detaches a link's program before it returns. Closing and unpinning alone would do so some time later.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_detach.link_fd = number(link);
    // SAFETY: the attributes hold no pointers.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// Id of a link's program.
pub(super) fn link_program(link: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(link_info(link)?.prog_id)
}

/// Index of the interface that an XDP link is attached to, in that interface's network namespace; `None` when the
/// interface is gone.
pub(super) fn link_interface(link: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let info = link_info(link)?;
    // SAFETY: all members of the union are plain data of which every bit pattern is a value.
    let index = unsafe { info.__bindgen_anon_1.xdp.ifindex };
    Ok((index != 0).then_some(index))
}

fn link_info(link: BorrowedFd<'_>) -> io::Result<bpf_link_info> {
    // SAFETY: all members are plain integers, for which zero is a value.
    let mut info: bpf_link_info = unsafe { mem::zeroed() };
    let mut attr = zeroed();
    attr.info.bpf_fd = number(link);
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = (&raw mut info) as u64;
    // SAFETY: the kernel writes at most `info_len` bytes to `info`.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// Pins a BPF object at a path on a BPF file system, where nothing may be yet.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.bpf_fd = number(object);
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: the kernel reads the path, which lives until the end of this function.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens the BPF object that is pinned at a path.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: the kernel reads the path, which lives until the end of this function.
    let fd = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr) }?;
    // SAFETY: BPF_OBJ_GET returns a new file descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts inner maps into an array of maps, waiting once for all of them.
pub(super) fn array_of_maps_set(
    map: BorrowedFd<'_>,
    entries: &[(u32, BorrowedFd<'_>)],
) -> io::Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let keys: Vec<u32> = entries.iter().map(|(index, _)| *index).collect();
    let values: Vec<u32> = entries.iter().map(|(_, inner)| number(*inner)).collect();
    let mut attr = zeroed();
    attr.batch.map_fd = number(map);
    attr.batch.keys = keys.as_ptr() as u64;
    attr.batch.values = values.as_ptr() as u64;
    attr.batch.count = keys.len() as u32;
    // SAFETY: keys and values outlive the call and have `count` elements of the sizes the map has, 4 bytes each.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) }.map(drop)
}

/// Empties a place of an array of maps.
pub(super) fn array_of_maps_delete(map: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = number(map);
    attr.__bindgen_anon_2.key = (&raw const index) as u64;
    // SAFETY: the kernel reads four bytes of key, the size of an array's keys.
    unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) }.map(drop)
}

/// How reading a hash map in steps goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// There may be more behind the new position.
    More,
    /// Nothing was read: what comes next does not fit in the buffers.
    TooSmall,
    /// That was all.
    End,
}

/// Reads as many elements of a hash map as fit in the capacity of `keys` and `values`, which are overwritten, from
/// `position` on, which moves; `None` is the start. The kernel hands out whole buckets, each as it is at one moment.
///
/// # Safety
/// The map's keys are `K` and its values `V`, both plain data.
pub(super) unsafe fn map_lookup_batch<K: Copy, V: Copy>(
    map: BorrowedFd<'_>,
    position: &mut Option<u32>,
    keys: &mut Vec<K>,
    values: &mut Vec<V>,
) -> io::Result<Step> {
    keys.clear();
    values.clear();
    let mut next = 0_u32;
    let room = keys.capacity().min(values.capacity());
    let mut attr = zeroed();
    attr.batch.map_fd = number(map);
    attr.batch.in_batch = position
        .as_ref()
        .map_or(0, |position| std::ptr::from_ref(position) as u64);
    attr.batch.out_batch = (&raw mut next) as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = u32::try_from(room).unwrap_or(u32::MAX);
    // SAFETY: keys and values have room for `count` elements of the map's sizes; a hash map's positions are 4 bytes.
    let step = match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) } {
        Ok(_) => Step::More,
        // With the last elements.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Step::End,
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => return Ok(Step::TooSmall),
        Err(error) => return Err(error),
    };
    *position = Some(next);
    // SAFETY: the kernel has written that many of both, and no more than there is room for.
    unsafe {
        let read = (attr.batch.count as usize).min(room);
        keys.set_len(read);
        values.set_len(read);
    }
    Ok(step)
}

fn zeroed() -> bpf_attr {
    // SAFETY: all members of the union are plain integers, for which zero is a value; the kernel wants what a
    // command does not use to be zero.
    unsafe { mem::zeroed() }
}

/// How a file descriptor is written in `bpf_attr`.
fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// # Safety
/// Pointers in `attr` must point to what `command` reads or writes through them.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<RawFd> {
    // SAFETY: `attr` is as large as said; its pointers are the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw mut *attr,
            size_of::<bpf_attr>(),
        )
    };
    match RawFd::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
