// SPDX-License-Identifier: Apache-2.0
//! The few calls of libc that the standard library does not have, for Linux on 64-bit machines.

use std::ffi::CStr;
use std::io::{self, Error};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::raw::{c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr::null_mut;

pub const PAGE: usize = 4096;

const AF_UNIX: c_int = 1;
const SOCK_SEQPACKET: c_int = 5;
const SOCK_CLOEXEC: c_int = 0o2000000;
const SOL_SOCKET: c_int = 1;
const SCM_RIGHTS: c_int = 1;
const MSG_NOSIGNAL: c_int = 0x4000;
const MSG_CMSG_CLOEXEC: c_int = 0x4000_0000;
const MFD_CLOEXEC_SEALING: c_uint = 3;
const F_ADD_SEALS: c_int = 1033;
const SEALS: c_int = 1 | 2 | 4; // F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW
const PROT_READ_WRITE: c_int = 3;
const MAP_SHARED: c_int = 1;
const POLLIN: i16 = 1;

#[repr(C)]
struct Iovec {
    base: *mut c_void,
    len: usize,
}

#[repr(C)]
struct Msghdr {
    name: *mut c_void,
    namelen: u32,
    iov: *mut Iovec,
    iovlen: usize,
    control: *mut c_void,
    controllen: usize,
    flags: c_int,
}

/// A cmsghdr with room for two descriptors (cmsg(3): the data begins 16 bytes in).
#[repr(C, align(8))]
struct Rights {
    len: usize,
    level: c_int,
    kind: c_int,
    fds: [c_int; 2],
}

#[repr(C)]
struct Sockaddr {
    family: u16,
    path: [c_char; 108],
}

#[repr(C)]
struct Pollfd {
    fd: c_int,
    events: i16,
    revents: i16,
}

extern "C" {
    fn memfd_create(name: *const c_char, flags: c_uint) -> c_int;
    fn ftruncate(fd: c_int, length: i64) -> c_int;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn mmap(at: *mut c_void, length: usize, prot: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void;
    fn munmap(at: *mut c_void, length: usize) -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn connect(fd: c_int, address: *const Sockaddr, length: u32) -> c_int;
    fn sendmsg(fd: c_int, message: *const Msghdr, flags: c_int) -> isize;
    fn recvmsg(fd: c_int, message: *mut Msghdr, flags: c_int) -> isize;
    fn poll(fds: *mut Pollfd, count: u64, milliseconds: c_int) -> c_int;
}

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        return Err(Error::last_os_error());
    }
    Ok(result)
}

/// A shared mapping; unmapped when it is dropped.
pub struct Mapping {
    pub at: *mut u8,
    length: usize,
}

impl Mapping {
    pub fn new(fd: &OwnedFd, first: usize, pages: usize) -> io::Result<Mapping> {
        let (length, offset) = (pages * PAGE, (first * PAGE) as i64);
        let at = unsafe { mmap(null_mut(), length, PROT_READ_WRITE, MAP_SHARED, fd.as_raw_fd(), offset) };
        if at as isize == -1 {
            return Err(Error::last_os_error());
        }
        Ok(Mapping { at: at.cast(), length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unsafe { munmap(self.at.cast(), self.length) };
    }
}

/// A memfd of so many pages that can be neither shrunk nor grown: the hypervisor refuses another one.
pub fn sealed_memory(name: &CStr, pages: usize) -> io::Result<OwnedFd> {
    let memory = unsafe { OwnedFd::from_raw_fd(checked(memfd_create(name.as_ptr(), MFD_CLOEXEC_SEALING))?) };
    checked(unsafe { ftruncate(memory.as_raw_fd(), (pages * PAGE) as i64) })?;
    checked(unsafe { fcntl(memory.as_raw_fd(), F_ADD_SEALS, SEALS) })?;
    Ok(memory)
}

pub fn connect_packets(path: &Path) -> io::Result<OwnedFd> {
    let bytes = path.as_os_str().as_encoded_bytes();
    let mut address = Sockaddr { family: AF_UNIX as u16, path: [0; 108] };
    if bytes.len() >= address.path.len() {
        return Err(Error::new(io::ErrorKind::InvalidInput, "the directory's path is too long for a socket"));
    }
    for (slot, byte) in address.path.iter_mut().zip(bytes) {
        *slot = *byte as c_char;
    }
    let made = unsafe { OwnedFd::from_raw_fd(checked(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0))?) };
    checked(unsafe { connect(made.as_raw_fd(), &address, size_of::<Sockaddr>() as u32) })?;
    Ok(made)
}

/// Send a message with a descriptor, if any; receive the reply and at most two descriptors.
pub fn exchange(
    socket: &OwnedFd,
    message: &[u8],
    passed: Option<&OwnedFd>,
    reply: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut rights = Rights { len: 20, level: SOL_SOCKET, kind: SCM_RIGHTS, fds: [-1, -1] };
    let mut vector = Iovec { base: message.as_ptr() as *mut c_void, len: message.len() };
    let mut header: Msghdr = unsafe { zeroed() };
    (header.iov, header.iovlen) = (&mut vector, 1);
    if let Some(fd) = passed {
        rights.fds[0] = fd.as_raw_fd();
        (header.control, header.controllen) = ((&mut rights as *mut Rights).cast(), 24);
    }
    repeated(|| unsafe { sendmsg(socket.as_raw_fd(), &header, MSG_NOSIGNAL) })?;

    rights = Rights { len: 0, level: 0, kind: 0, fds: [-1, -1] };
    vector = Iovec { base: reply.as_mut_ptr().cast(), len: reply.len() };
    header = unsafe { zeroed() };
    (header.iov, header.iovlen) = (&mut vector, 1);
    (header.control, header.controllen) = ((&mut rights as *mut Rights).cast(), size_of::<Rights>());
    let got = repeated(|| unsafe { recvmsg(socket.as_raw_fd(), &mut header, MSG_CMSG_CLOEXEC) })?;
    let count = if rights.kind == SCM_RIGHTS { (rights.len.max(16) - 16) / size_of::<c_int>() } else { 0 };
    let fds = rights.fds[..count].iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }).collect();
    Ok((got as usize, fds))
}

/// Repeat a call that a signal interrupts.
fn repeated(mut call: impl FnMut() -> isize) -> io::Result<isize> {
    loop {
        let done = call();
        if done >= 0 {
            return Ok(done);
        }
        let error = Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Whether the descriptor becomes readable within so many milliseconds.
pub fn readable(fd: RawFd, milliseconds: i32) -> io::Result<bool> {
    let mut wanted = Pollfd { fd, events: POLLIN, revents: 0 };
    Ok(checked(unsafe { poll(&mut wanted, 1, milliseconds) })? > 0)
}
