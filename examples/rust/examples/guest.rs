// SPDX-License-Identifier: Apache-2.0
//! A guest of emulated Xen in Rust: joins, connects its vif 0, sends one frame, receives one, prints both.
//!
//!     cargo run --example guest -- DIR [NAME]
//!
//! It makes none of the toolstack's nodes: `netback attach` writes device/vif/0 (examples/c/guest.c has the whole scene).

use emulated_xen::Domain;
use std::io::{self, Error, ErrorKind};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

const DEVICE: &str = "device/vif/0";
const MILLISECONDS: i32 = 60_000;
const SLOTS: u32 = 256; // the largest power of two of (4096 - 64) / 12 and / 8

const INIT_WAIT: u32 = 2;
const CONNECTED: u32 = 4;
const CLOSING: u32 = 5;
const CLOSED: u32 = 6;

/// xen/io/ring.h: the head of a ring's page; the slots begin 64 bytes in.
#[repr(C)]
struct Head {
    req_prod: AtomicU32,
    req_event: AtomicU32,
    rsp_prod: AtomicU32,
    rsp_event: AtomicU32,
}

struct Ring {
    page: *mut u8,
    gref: u32,
    slot: usize, // bytes
}

impl Ring {
    fn new(xen: &mut Domain, backend: u16, slot: usize) -> io::Result<Ring> {
        let frame = new_page(xen)?;
        let ring = Ring { page: xen.page(frame), gref: xen.grant(frame, backend, false)?, slot };
        ring.head().req_event.store(1, Ordering::Relaxed);
        ring.head().rsp_event.store(1, Ordering::Relaxed);
        Ok(ring)
    }

    fn head(&self) -> &Head {
        unsafe { &*self.page.cast() }
    }

    fn put(&self, index: u32, request: &[u8]) {
        assert!(request.len() <= self.slot);
        let slot = unsafe { self.page.add(64 + (index % SLOTS) as usize * self.slot) };
        unsafe { slot.copy_from_nonoverlapping(request.as_ptr(), request.len()) };
    }

    /// A private copy of a response: the backend may write to the slot at any time.
    fn get<const N: usize>(&self, index: u32) -> [u8; N] {
        let slot = unsafe { self.page.add(64 + (index % SLOTS) as usize * self.slot) };
        unsafe { slot.cast::<[u8; N]>().read_volatile() }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, name @ ..] = arguments.as_slice() else {
        eprintln!("usage: guest DIR [NAME]");
        std::process::exit(2);
    };
    let name = name.first().map_or("rust-guest", String::as_str);
    if let Err(error) = run(Path::new(directory), name) {
        eprintln!("guest: {error}");
        std::process::exit(1);
    }
}

fn run(directory: &Path, name: &str) -> io::Result<()> {
    let mut xen = Domain::join(directory, name, 512, 1)?;
    println!("domain {}", xen.domid);
    let (backend, backend_domid, mac) = find_device(&mut xen)?;
    wait_backend(&mut xen, &backend, INIT_WAIT)?;

    let tx = Ring::new(&mut xen, backend_domid, 12)?;
    let rx = Ring::new(&mut xen, backend_domid, 8)?;
    let mut buffers = Vec::new();
    for id in 0..SLOTS {
        let frame = new_page(&mut xen)?;
        let gref = xen.grant(frame, backend_domid, false)?;
        rx.put(id, &[id.to_le_bytes(), gref.to_le_bytes()].concat());
        buffers.push(frame);
    }
    rx.head().req_prod.store(SLOTS, Ordering::Release);
    let port = xen.alloc_unbound(backend_domid.into())?;
    let keys = [("tx-ring-ref", tx.gref), ("rx-ring-ref", rx.gref), ("event-channel", port)];
    let features = [("request-rx-copy", 1), ("feature-rx-notify", 1), ("feature-no-csum-offload", 1)];
    xen.store.transact(|store, tx| {
        keys.iter().chain(&features).try_for_each(|(key, value)| {
            store.write(tx, &format!("{DEVICE}/{key}"), &value.to_string())
        })
    })?;
    set_state(&mut xen, CONNECTED)?;
    wait_backend(&mut xen, &backend, CONNECTED)?;
    println!("connected to {backend}");

    // netif.h, a TX request: u32 gref, u16 offset, flags, id, size
    let frame = frame_from(xen.domid, mac);
    let page = new_page(&mut xen)?;
    unsafe { xen.page(page).copy_from_nonoverlapping(frame.as_ptr(), frame.len()) };
    let gref = xen.grant(page, backend_domid, true)?;
    let size = (frame.len() as u16).to_le_bytes();
    tx.put(0, &[&gref.to_le_bytes()[..], &[0; 6], &size].concat());
    tx.head().req_prod.store(1, Ordering::Release);
    xen.notify(port);
    wait_response(&mut xen, &tx)?;
    let [_, _, low, high] = tx.get::<4>(0); // u16 id, i16 status
    if i16::from_le_bytes([low, high]) != 0 {
        return Err(Error::other("the backend refused the frame"));
    }
    print("sent", &frame);

    wait_response(&mut xen, &rx)?;
    let response = rx.get::<8>(0); // u16 id, offset, flags, i16 status: a length
    let half = |at: usize| u16::from_le_bytes([response[at], response[at + 1]]) as usize;
    let (id, offset, length) = (half(0), half(2), half(6));
    if id >= buffers.len() || offset + length > emulated_xen::PAGE {
        return Err(Error::new(ErrorKind::InvalidData, "the backend's answer is no frame"));
    }
    let mut received = vec![0u8; length];
    let at = unsafe { xen.page(buffers[id]).add(offset) };
    unsafe { at.copy_to_nonoverlapping(received.as_mut_ptr(), length) };
    print("received", &received);

    set_state(&mut xen, CLOSING)?;
    wait_backend(&mut xen, &backend, CLOSING)?;
    set_state(&mut xen, CLOSED)?;
    wait_backend(&mut xen, &backend, CLOSED)?; // it unmaps the rings before they are revoked
    xen.revoke(tx.gref)?;
    xen.revoke(rx.gref)
}

fn new_page(xen: &mut Domain) -> io::Result<u32> {
    xen.alloc_page().ok_or_else(|| Error::new(ErrorKind::OutOfMemory, "every page is in use"))
}

fn find_device(xen: &mut Domain) -> io::Result<(String, u16, [u8; 6])> {
    xen.store.watch(DEVICE)?;
    loop {
        let read = ["backend", "backend-id", "mac"].map(|key| xen.store.read(0, &format!("{DEVICE}/{key}")));
        if let [Ok(Some(backend)), Ok(Some(domid)), Ok(Some(mac))] = read {
            xen.store.watch(&backend)?;
            let bytes: Vec<u8> = mac.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
            let invalid = |what: &str| Error::new(ErrorKind::InvalidData, format!("{DEVICE}/{what}"));
            let domid = domid.parse().map_err(|_| invalid("backend-id"))?;
            return Ok((backend, domid, bytes.try_into().map_err(|_| invalid("mac"))?));
        }
        wait_news(xen, "no device/vif/0 came: was `netback attach` run?")?;
    }
}

fn set_state(xen: &mut Domain, state: u32) -> io::Result<()> {
    xen.store.write(0, &format!("{DEVICE}/state"), &state.to_string())
}

fn wait_backend(xen: &mut Domain, backend: &str, least: u32) -> io::Result<()> {
    let path = format!("{backend}/state");
    while xen.store.read(0, &path)?.and_then(|state| state.parse().ok()).unwrap_or(0) < least {
        wait_news(xen, "the backend does not go on")?;
    }
    Ok(())
}

fn wait_news(xen: &mut Domain, what: &str) -> io::Result<()> {
    match xen.store.wait_watch(MILLISECONDS)? {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::TimedOut, what)),
    }
}

/// Wait until a ring has its first response.
fn wait_response(xen: &mut Domain, ring: &Ring) -> io::Result<()> {
    while ring.head().rsp_prod.load(Ordering::Acquire) == 0 {
        if !xen.wait_event(MILLISECONDS)? {
            return Err(Error::new(ErrorKind::TimedOut, "no response came"));
        }
        for port in xen.take() {
            xen.unmask(port); // then check the ring again: no later event is lost
        }
    }
    Ok(())
}

/// A broadcast of the ethertype for local experiments.
fn frame_from(domid: u32, mac: [u8; 6]) -> Vec<u8> {
    let text = format!("hello from domain {domid}");
    let mut frame = [&[0xff; 6][..], &mac, &[0x88, 0xb5], text.as_bytes()].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

fn print(verb: &str, frame: &[u8]) {
    let bytes: Vec<String> = frame.iter().take(64).map(|byte| format!("{byte:02x}")).collect();
    let more = if frame.len() > 64 { " ..." } else { "" };
    println!("{verb} {} bytes: {}{more}", frame.len(), bytes.join(" "));
}
