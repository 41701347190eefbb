// SPDX-License-Identifier: Apache-2.0
//! Join netback's emulated Xen from Rust, with the standard library alone: event channels, grants and the store.
//!
//! docs/emulated-xen.md describes the protocol. A process that joins is a domain until [`Domain`] is dropped.
//!
//! ```no_run
//! let mut xen = emulated_xen::Domain::join(std::path::Path::new("/run/netback"), "guest", 1024, 1)?;
//! let port = xen.alloc_unbound(0)?;
//! let frame = xen.alloc_page().expect("a free page");
//! let gref = xen.grant(frame, 0, false)?;
//! # Ok::<(), std::io::Error>(())
//! ```

mod store;
mod sys;

pub use store::Store;
pub use sys::PAGE;

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Error, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{fence, AtomicU16, AtomicU32, AtomicU64, Ordering};
use sys::Mapping;

const MAGIC: u32 = 0x4E45_5845; // "EXEN"
const VERSION: u32 = 1;
const ANY_DOMID: u32 = u32::MAX;
const PORTS: u32 = 4096;
const FIRST_GREF: usize = 8; // those below belong to the toolstack, as on Xen
const GRANTS_PER_PAGE: usize = PAGE / 8;

const ALLOC_UNBOUND: u32 = 1;
const BIND_INTERDOMAIN: u32 = 2;
const PEER: u32 = 3;
const CLOSE: u32 = 4;

const ACCESS: u16 = 1;
const READONLY: u16 = 4;
const IN_USE: u16 = 8 | 16;

/// xen/grant_table.h, version 1.
#[repr(C)]
struct GrantEntry {
    flags: AtomicU16,
    domid: AtomicU16,
    frame: AtomicU32,
}

#[repr(C)]
struct EventPage {
    pending: [AtomicU64; PORTS as usize / 64],
    mask: [AtomicU64; PORTS as usize / 64],
    generation: AtomicU32,
}

/// The far side of a port, as of a generation of the event page.
struct Remote {
    page: Mapping,
    port: u32,
    eventfd: File,
}

#[derive(Default)]
struct Reply {
    domid: u32,
    number: u32,
    page: u32,
    fds: Vec<OwnedFd>,
}

/// A domain of an emulated Xen: its memory, its grants and its ports. It ends when this is dropped.
pub struct Domain {
    hypervisor: OwnedFd,
    memory: Mapping,
    grant_pages: usize,
    pages: usize,
    next_frame: usize,
    eventfd: File,
    remotes: HashMap<u32, (u32, Option<Remote>)>,
    /// This domain's connection to the store.
    pub store: Store,
    pub domid: u32,
}

impl Domain {
    /// Make a domain with so many pages of memory, and 512 grants for each of `grant_pages` (1 to 64).
    pub fn join(directory: &Path, name: &str, pages: usize, grant_pages: usize) -> io::Result<Domain> {
        let all = grant_pages + 1 + pages;
        let memfd = sys::sealed_memory(&CString::new(name)?, all)?;
        let memory = Mapping::new(&memfd, 0, all)?;
        let hypervisor = sys::connect_packets(&directory.join("hypervisor.sock"))?;
        let mut hello = [0u8; 64];
        for (slot, word) in hello.chunks_exact_mut(4).zip([MAGIC, VERSION, 0, ANY_DOMID, grant_pages as u32, 0]) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        for (slot, byte) in hello[24..63].iter_mut().zip(name.bytes()) {
            *slot = byte;
        }
        let reply = call(&hypervisor, &hello, Some(&memfd))?;
        let [eventfd, store]: [OwnedFd; 2] = reply.fds.try_into().map_err(|_| malformed())?;
        Ok(Domain {
            hypervisor,
            memory,
            grant_pages,
            pages: all,
            next_frame: grant_pages + 1,
            eventfd: File::from(eventfd),
            remotes: HashMap::new(),
            store: Store::new(store),
            domid: reply.domid,
        })
    }

    // ---- memory and grants

    /// The address of a frame. The far side of a granted frame may change it at any time.
    pub fn page(&self, frame: u32) -> *mut u8 {
        assert!((frame as usize) < self.pages);
        unsafe { self.memory.at.add(frame as usize * PAGE) }
    }

    /// The next unused frame, zeroed.
    pub fn alloc_page(&mut self) -> Option<u32> {
        let frame = self.next_frame;
        (frame < self.pages).then(|| {
            self.next_frame += 1;
            frame as u32
        })
    }

    /// Grant a frame to a domain; returns the gref.
    pub fn grant(&mut self, frame: u32, domid: u16, readonly: bool) -> io::Result<u32> {
        for (gref, entry) in self.grants().iter().enumerate().skip(FIRST_GREF) {
            if entry.flags.load(Ordering::Acquire) == 0 {
                entry.domid.store(domid, Ordering::Relaxed);
                entry.frame.store(frame, Ordering::Relaxed);
                entry.flags.store(ACCESS | if readonly { READONLY } else { 0 }, Ordering::Release);
                return Ok(gref as u32);
            }
        }
        Err(Error::new(ErrorKind::OutOfMemory, "every grant is in use"))
    }

    /// End a grant; ResourceBusy while it is mapped.
    pub fn revoke(&mut self, gref: u32) -> io::Result<()> {
        let flags = &self.grants()[gref as usize].flags;
        flags
            .fetch_update(Ordering::SeqCst, Ordering::Acquire, |value| (value & IN_USE == 0).then_some(0))
            .map(drop)
            .map_err(|_| Error::new(ErrorKind::ResourceBusy, "the grant is mapped"))
    }

    fn grants(&self) -> &[GrantEntry] {
        let entries = self.grant_pages * GRANTS_PER_PAGE;
        unsafe { std::slice::from_raw_parts(self.memory.at.cast(), entries) }
    }

    // ---- event channels

    /// A port that `domid` may bind to.
    pub fn alloc_unbound(&mut self, domid: u32) -> io::Result<u32> {
        self.open_port(ALLOC_UNBOUND, domid, 0)
    }

    /// A new local port, bound to an unbound one of `domid`.
    pub fn bind_interdomain(&mut self, domid: u32, port: u32) -> io::Result<u32> {
        self.open_port(BIND_INTERDOMAIN, domid, port)
    }

    /// Close a port; its far side is unbound again.
    pub fn close_port(&mut self, port: u32) -> io::Result<()> {
        self.remotes.remove(&port);
        self.request(CLOSE, 0, port).map(drop)
    }

    /// Make the far port pending, and wake its domain unless the port is masked. No third process is involved.
    pub fn notify(&mut self, port: u32) {
        fence(Ordering::SeqCst); // the far side sees earlier writes before the port is pending
        let generation = self.events().generation.load(Ordering::Acquire);
        if self.remotes.get(&port).map(|known| known.0) != Some(generation) {
            let remote = self.far_side(port).ok();
            self.remotes.insert(port, (generation, remote));
        }
        if let Some((_, Some(remote))) = self.remotes.get(&port) {
            let far = unsafe { &*remote.page.at.cast::<EventPage>() };
            let (word, bit) = place(remote.port);
            let before = far.pending[word].fetch_or(bit, Ordering::SeqCst);
            if before & bit == 0 && far.mask[word].load(Ordering::SeqCst) & bit == 0 {
                ring(&remote.eventfd);
            }
        }
    }

    /// Wait until a port may be pending; false after so many milliseconds.
    pub fn wait_event(&self, milliseconds: i32) -> io::Result<bool> {
        sys::readable(self.eventfd.as_raw_fd(), milliseconds)
    }

    /// The pending ports, which are masked until `unmask`.
    pub fn take(&mut self) -> Vec<u32> {
        let mut counter = [0u8; 8];
        if self.wait_event(0).unwrap_or(false) {
            let _ = (&self.eventfd).read(&mut counter);
        }
        let (events, mut taken) = (self.events(), Vec::new());
        for (word, (pending, mask)) in events.pending.iter().zip(&events.mask).enumerate() {
            let found = pending.load(Ordering::SeqCst) & !mask.load(Ordering::SeqCst);
            mask.fetch_or(found, Ordering::SeqCst);
            pending.fetch_and(!found, Ordering::SeqCst);
            taken.extend((0..64).filter(|bit| found >> bit & 1 == 1).map(|bit| word as u32 * 64 + bit));
        }
        taken
    }

    /// After the work: let a port fire again; it fires at once if it became pending meanwhile.
    pub fn unmask(&self, port: u32) {
        let (word, bit) = place(port);
        self.events().mask[word].fetch_and(!bit, Ordering::SeqCst);
        if self.events().pending[word].load(Ordering::SeqCst) & bit != 0 {
            ring(&self.eventfd);
        }
    }

    fn events(&self) -> &EventPage {
        unsafe { &*self.memory.at.add(self.grant_pages * PAGE).cast() }
    }

    fn open_port(&mut self, op: u32, domid: u32, number: u32) -> io::Result<u32> {
        let port = self.request(op, domid, number)?.number;
        self.remotes.remove(&port);
        Ok(port)
    }

    fn far_side(&self, port: u32) -> io::Result<Remote> {
        let reply = self.request(PEER, 0, port)?;
        let [memory, eventfd]: [OwnedFd; 2] = reply.fds.try_into().map_err(|_| malformed())?;
        let page = Mapping::new(&memory, reply.page as usize, 1)?;
        Ok(Remote { page, port: reply.number % PORTS, eventfd: File::from(eventfd) })
    }

    fn request(&self, op: u32, domid: u32, number: u32) -> io::Result<Reply> {
        let words: Vec<u8> = [op, domid, number, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        call(&self.hypervisor, &words, None)
    }
}

fn place(port: u32) -> (usize, u64) {
    ((port % PORTS / 64) as usize, 1 << (port % 64))
}

/// A full counter is no error: the descriptor is readable then.
fn ring(mut eventfd: &File) {
    let _ = eventfd.write(&1u64.to_ne_bytes());
}

fn call(hypervisor: &OwnedFd, message: &[u8], passed: Option<&OwnedFd>) -> io::Result<Reply> {
    let mut bytes = [0u8; 32];
    let (got, fds) = sys::exchange(hypervisor, message, passed, &mut bytes)?;
    if got != bytes.len() {
        return Err(malformed());
    }
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let result = word(0) as i32;
    if result < 0 {
        return Err(Error::from_raw_os_error(-result));
    }
    Ok(Reply { domid: word(8), number: word(12), page: word(20), fds })
}

fn malformed() -> Error {
    Error::new(ErrorKind::InvalidData, "the hypervisor's reply is malformed")
}
