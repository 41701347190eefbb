/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Join netback's emulated Xen from C. Needs libc and gcc or clang; there is nothing to link.
 *
 * Include this header first in a file (it needs memfd_create and eventfd of libc), or compile with -D_GNU_SOURCE.
 * docs/emulated-xen.md describes the protocol; netback/platforms/emulated/protocol.py is its Python side.
 *
 *     struct exen xen;
 *     if (exen_join(&xen, "/run/netback", EXEN_DOMID_ANY, "guest", 1024, 1) < 0) ...
 *     int port = exen_alloc_unbound(&xen, 0);
 *     int gref = exen_grant(&xen, exen_alloc_page(&xen), 0, 0);
 *
 * Functions return a negative errno on failure. One thread at a time; no function raises SIGPIPE.
 */
#ifndef NETBACK_EMULATED_XEN_H
#define NETBACK_EMULATED_XEN_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define EXEN_MAGIC 0x4E455845u /* "EXEN" */
#define EXEN_VERSION 1u
#define EXEN_PAGE 4096u
#define EXEN_PORTS 4096u
#define EXEN_MAX_PAGES (1u << 22) /* of one memory: 16 GiB; of all together 16 times as much */
#define EXEN_MAX_GRANT_PAGES 64u
#define EXEN_DOMID_ANY 0xFFFFFFFFu
#define EXEN_FIRST_GREF 8u /* grefs below belong to the toolstack, as on Xen */
#define EXEN_STORE_PAYLOAD 4096u

enum exen_hello_flag { EXEN_ATTACH = 1 };

enum exen_op {
    EXEN_ALLOC_UNBOUND = 1, /* domid may bind              -> number: local port                        */
    EXEN_BIND_INTERDOMAIN,  /* domid, number: its port     -> number: local port, pending at once       */
    EXEN_PEER,              /* number: local port          -> number, domid, page, handle; memfd, eventfd */
    EXEN_CLOSE,             /* number: local port                                                       */
    EXEN_STATUS,            /* number: local port          -> status: enum exen_port_state, number, domid */
    EXEN_MEMORY,            /* domid                       -> grant_pages; memfd                        */
    EXEN_MAP,               /* domid, number: gref, flags  -> number: grant handle, page; memfd         */
    EXEN_UNMAP              /* number: grant handle                                                     */
};

enum exen_map_flag { EXEN_MAP_READONLY = 1 };
enum exen_port_state { EXEN_PORT_CLOSED = 0, EXEN_PORT_UNBOUND = 1, EXEN_PORT_INTERDOMAIN = 2 };
enum exen_grant_flag {
    EXEN_GRANT_ACCESS = 1,
    EXEN_GRANT_READONLY = 4,
    EXEN_GRANT_READING = 8,
    EXEN_GRANT_WRITING = 16
};

/* The messages: little-endian, exactly these sizes. */
struct exen_hello {
    uint32_t magic, version, flags, domid, grant_pages, reserved;
    char name[40];
};

struct exen_request {
    uint32_t op, domid, number, flags;
};

struct exen_reply {
    int32_t result; /* 0 or a negative errno */
    int32_t status; /* GNTST_* of MAP and UNMAP, the state of STATUS */
    uint32_t domid, number, grant_pages, page;
    uint64_t handle; /* equal numbers are the same event page */
};

/* The memory: pages [0, grant_pages) of these entries, then the event page, then the domain's own. */
struct exen_grant_entry {
    uint16_t flags, domid;
    uint32_t frame; /* the page's number in the memfd */
};

struct exen_event_page {
    uint64_t pending[EXEN_PORTS / 64];
    uint64_t mask[EXEN_PORTS / 64];
    uint32_t generation; /* changes with the far side of any local port */
};

_Static_assert(sizeof(struct exen_hello) == 64, "hello");
_Static_assert(sizeof(struct exen_request) == 16, "request");
_Static_assert(sizeof(struct exen_reply) == 32, "reply");
_Static_assert(sizeof(struct exen_grant_entry) == 8, "grant entry");
_Static_assert(offsetof(struct exen_event_page, generation) == 1024, "event page");

/* The far side of a port, as of `generation`. */
struct exen_remote {
    struct exen_event_page *page; /* NULL: unbound */
    uint32_t generation, port;
    int eventfd;
};

struct exen {
    int hypervisor, store, eventfd, memfd;
    uint32_t domid, grant_pages, pages, next_frame, next_request;
    int watch_fired; /* a watch event arrived since the last exen_store_wait_watch */
    uint8_t *memory;
    struct exen_grant_entry *grants;
    struct exen_event_page *events;
    struct exen_remote *remotes; /* by local port */
};

/* ---- requests */

/* Send a message with a descriptor (or -1); receive the reply with at most two descriptors, which are the caller's. */
static inline int exen_call(int fd, const void *message, size_t size, int passed, struct exen_reply *reply, int fds[2])
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(2 * sizeof(int))];
    } control;
    struct iovec out = {.iov_base = (void *)(uintptr_t)message, .iov_len = size};
    struct iovec in = {.iov_base = reply, .iov_len = sizeof(*reply)};
    struct msghdr header = {.msg_iov = &out, .msg_iovlen = 1};
    ssize_t done;

    memset(&control, 0, sizeof(control));
    fds[0] = fds[1] = -1;
    if (passed >= 0) {
        header.msg_control = control.space;
        header.msg_controllen = CMSG_SPACE(sizeof(int));
        struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(rights), &passed, sizeof(int));
    }
    do
        done = sendmsg(fd, &header, MSG_NOSIGNAL);
    while (done < 0 && errno == EINTR);
    if (done < 0)
        return -errno;

    header = (struct msghdr){.msg_iov = &in, .msg_iovlen = 1, .msg_control = control.space};
    header.msg_controllen = sizeof(control.space);
    do
        done = recvmsg(fd, &header, MSG_CMSG_CLOEXEC);
    while (done < 0 && errno == EINTR);
    if (done < 0)
        return -errno;
    for (struct cmsghdr *rights = CMSG_FIRSTHDR(&header); rights; rights = CMSG_NXTHDR(&header, rights))
        if (rights->cmsg_level == SOL_SOCKET && rights->cmsg_type == SCM_RIGHTS)
            memcpy(fds, CMSG_DATA(rights), rights->cmsg_len - CMSG_LEN(0));
    return done == (ssize_t)sizeof(*reply) ? reply->result : -EPIPE;
}

/* Send a request; the reply's descriptors are the caller's. */
static inline int exen_request(struct exen *xen, uint32_t op, uint32_t domid, uint32_t number, uint32_t flags,
                               struct exen_reply *reply, int fds[2])
{
    struct exen_request request = {.op = op, .domid = domid, .number = number, .flags = flags};
    return exen_call(xen->hypervisor, &request, sizeof(request), -1, reply, fds);
}

/* ---- joining and leaving */

static inline void exen_leave(struct exen *xen)
{
    int *fds[] = {&xen->hypervisor, &xen->store, &xen->eventfd, &xen->memfd};
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        if (*fds[i] >= 0)
            close(*fds[i]);
    if (xen->remotes)
        for (uint32_t port = 0; port < EXEN_PORTS; port++)
            if (xen->remotes[port].page) {
                munmap(xen->remotes[port].page, EXEN_PAGE);
                close(xen->remotes[port].eventfd);
            }
    free(xen->remotes);
    if (xen->memory)
        munmap(xen->memory, (size_t)xen->pages * EXEN_PAGE);
    memset(xen, 0, sizeof(*xen));
    xen->hypervisor = xen->store = xen->eventfd = xen->memfd = -1;
}

/* The memory of this domain. The hypervisor refuses one that is not sealed. */
static inline int exen_make_memory(struct exen *xen, const char *name)
{
    xen->memfd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (xen->memfd < 0 || ftruncate(xen->memfd, (off_t)xen->pages * EXEN_PAGE) < 0 ||
        fcntl(xen->memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return -errno;
    void *memory = mmap(NULL, (size_t)xen->pages * EXEN_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, xen->memfd, 0);
    if (memory == MAP_FAILED)
        return -errno;
    xen->memory = memory;
    xen->grants = memory;
    xen->events = (struct exen_event_page *)(void *)(xen->memory + (size_t)xen->grant_pages * EXEN_PAGE);
    return 0;
}

static inline int exen_connect(struct exen *xen, const char *dir)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int length = snprintf(address.sun_path, sizeof(address.sun_path), "%s/hypervisor.sock", dir);
    if (length < 0 || (size_t)length >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    xen->hypervisor = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (xen->hypervisor < 0 || connect(xen->hypervisor, (struct sockaddr *)&address, sizeof(address)) < 0)
        return -errno;
    return 0;
}

/* Send a hello: 0, or a negative errno and nothing to release. */
static inline int exen_open(struct exen *xen, const char *dir, const struct exen_hello *hello, uint32_t pages)
{
    struct exen_reply reply;
    int fds[2] = {-1, -1};

    memset(xen, 0, sizeof(*xen));
    xen->hypervisor = xen->store = xen->eventfd = xen->memfd = -1;
    xen->grant_pages = hello->grant_pages;
    xen->pages = hello->grant_pages + 1 + pages;
    xen->next_frame = hello->grant_pages + 1;
    xen->remotes = calloc(EXEN_PORTS, sizeof(*xen->remotes));
    int result = xen->remotes ? exen_make_memory(xen, hello->name[0] ? hello->name : "guest") : -ENOMEM;
    if (result == 0)
        result = exen_connect(xen, dir);
    if (result == 0)
        result = exen_call(xen->hypervisor, hello, sizeof(*hello), xen->memfd, &reply, fds);
    xen->eventfd = fds[0];
    xen->store = fds[1];
    if (result < 0) {
        exen_leave(xen);
        return result;
    }
    xen->domid = reply.domid;
    for (uint32_t port = 0; port < EXEN_PORTS; port++) /* the far side is unknown */
        xen->remotes[port].generation = xen->events->generation - 1;
    return 0;
}

/* Make a domain with `pages` of memory and 512 grants for each of `grant_pages` (1 to 64). It ends at exen_leave and
 * with this process. -EFBIG beyond EXEN_MAX_PAGES, -EEXIST: the domid is in use, -EINVAL: an invalid argument. */
static inline int exen_join(struct exen *xen, const char *dir, uint32_t domid, const char *name, uint32_t pages,
                            uint32_t grant_pages)
{
    struct exen_hello hello = {
        .magic = EXEN_MAGIC, .version = EXEN_VERSION, .domid = domid, .grant_pages = grant_pages};
    snprintf(hello.name, sizeof(hello.name), "%s", name);
    return exen_open(xen, dir, &hello, pages);
}

/* Open a further handle of an existing domain, with its own ports and event page. */
static inline int exen_attach(struct exen *xen, const char *dir, uint32_t domid)
{
    struct exen_hello hello = {.magic = EXEN_MAGIC, .version = EXEN_VERSION, .flags = EXEN_ATTACH, .domid = domid};
    return exen_open(xen, dir, &hello, 0);
}

/* ---- memory and grants */

/* A frame's address. */
static inline void *exen_page(const struct exen *xen, uint32_t frame)
{
    return xen->memory + (size_t)frame * EXEN_PAGE;
}

/* The next unused frame, zeroed; 0 if there is none. */
static inline uint32_t exen_alloc_page(struct exen *xen)
{
    return xen->next_frame < xen->pages ? xen->next_frame++ : 0;
}

/* Grant a frame to a domain: the gref, or -ENOSPC. */
static inline int exen_grant(struct exen *xen, uint32_t frame, uint16_t domid, int readonly)
{
    uint32_t entries = xen->grant_pages * (uint32_t)(EXEN_PAGE / sizeof(struct exen_grant_entry));
    for (uint32_t gref = EXEN_FIRST_GREF; gref < entries; gref++)
        if (__atomic_load_n(&xen->grants[gref].flags, __ATOMIC_ACQUIRE) == 0) {
            xen->grants[gref].domid = domid;
            xen->grants[gref].frame = frame;
            uint16_t flags = (uint16_t)(EXEN_GRANT_ACCESS | (readonly ? EXEN_GRANT_READONLY : 0));
            __atomic_store_n(&xen->grants[gref].flags, flags, __ATOMIC_RELEASE);
            return (int)gref;
        }
    return -ENOSPC;
}

/* End a grant; -EBUSY while it is mapped. */
static inline int exen_revoke(struct exen *xen, uint32_t gref)
{
    uint16_t flags = __atomic_load_n(&xen->grants[gref].flags, __ATOMIC_ACQUIRE);
    do
        if (flags & (EXEN_GRANT_READING | EXEN_GRANT_WRITING))
            return -EBUSY;
    while (!__atomic_compare_exchange_n(&xen->grants[gref].flags, &flags, (uint16_t)0, 0, __ATOMIC_SEQ_CST,
                                        __ATOMIC_ACQUIRE));
    return 0;
}

/* ---- event channels */

static inline void exen_forget(struct exen *xen, uint32_t port)
{
    xen->remotes[port % EXEN_PORTS].generation = __atomic_load_n(&xen->events->generation, __ATOMIC_ACQUIRE) - 1;
}

static inline int exen_open_port(struct exen *xen, uint32_t op, uint32_t domid, uint32_t number)
{
    struct exen_reply reply;
    int fds[2];
    int result = exen_request(xen, op, domid, number, 0, &reply, fds);
    if (result < 0)
        return result;
    exen_forget(xen, reply.number);
    return (int)reply.number;
}

/* Allocate a port that `domid` may bind to. */
static inline int exen_alloc_unbound(struct exen *xen, uint32_t domid)
{
    return exen_open_port(xen, EXEN_ALLOC_UNBOUND, domid, 0);
}

/* Bind a new local port to an unbound one: the local port. -EINVAL: it is bound or not meant for this domain. */
static inline int exen_bind_interdomain(struct exen *xen, uint32_t domid, uint32_t port)
{
    return exen_open_port(xen, EXEN_BIND_INTERDOMAIN, domid, port);
}

/* Close a port; its far side is unbound again. */
static inline int exen_close_port(struct exen *xen, uint32_t port)
{
    struct exen_reply reply;
    int fds[2];
    int result = exen_request(xen, EXEN_CLOSE, 0, port, 0, &reply, fds);
    exen_forget(xen, port);
    return result;
}

/* Ask for the far side of a port; a port may have none. */
static inline void exen_learn(struct exen *xen, uint32_t port)
{
    struct exen_remote *remote = &xen->remotes[port];
    struct exen_reply reply;
    int fds[2];
    if (remote->page) {
        munmap(remote->page, EXEN_PAGE);
        close(remote->eventfd);
        remote->page = NULL;
    }
    remote->generation = __atomic_load_n(&xen->events->generation, __ATOMIC_ACQUIRE); /* before PEER */
    if (exen_request(xen, EXEN_PEER, 0, port, 0, &reply, fds) < 0)
        return;
    void *page = mmap(NULL, EXEN_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], (off_t)reply.page * EXEN_PAGE);
    close(fds[0]);
    if (page == MAP_FAILED) {
        close(fds[1]);
        return;
    }
    remote->page = page;
    remote->port = reply.number % EXEN_PORTS;
    remote->eventfd = fds[1];
}

static inline void exen_ring(int fd)
{
    if (eventfd_write(fd, 1) < 0)
        return; /* the counter is full, so the descriptor is readable */
}

/* Make the far port pending, and wake its domain unless the port is masked. No third process is involved. */
static inline void exen_notify(struct exen *xen, uint32_t port)
{
    struct exen_remote *remote = &xen->remotes[port % EXEN_PORTS];
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the far side sees earlier writes before the port is pending */
    if (remote->generation != __atomic_load_n(&xen->events->generation, __ATOMIC_ACQUIRE))
        exen_learn(xen, port % EXEN_PORTS);
    if (!remote->page)
        return;
    uint64_t bit = UINT64_C(1) << (remote->port % 64);
    uint64_t was = __atomic_fetch_or(&remote->page->pending[remote->port / 64], bit, __ATOMIC_SEQ_CST);
    if (!(was & bit) && !(__atomic_load_n(&remote->page->mask[remote->port / 64], __ATOMIC_SEQ_CST) & bit))
        exen_ring(remote->eventfd);
}

/* Take at most `room` pending ports, which stay masked until exen_unmask: their number. */
static inline int exen_take(struct exen *xen, uint32_t *ports, int room)
{
    eventfd_t count;
    int found = 0;
    if (eventfd_read(xen->eventfd, &count) < 0 && errno != EAGAIN)
        return -errno;
    for (uint32_t word = 0; word < EXEN_PORTS / 64; word++) {
        uint64_t bits = __atomic_load_n(&xen->events->pending[word], __ATOMIC_SEQ_CST) &
                        ~__atomic_load_n(&xen->events->mask[word], __ATOMIC_SEQ_CST);
        for (; bits; bits &= bits - 1) {
            uint64_t bit = bits & -bits;
            if (found == room) { /* the descriptor stays readable for the rest */
                exen_ring(xen->eventfd);
                return found;
            }
            __atomic_fetch_or(&xen->events->mask[word], bit, __ATOMIC_SEQ_CST);
            __atomic_fetch_and(&xen->events->pending[word], ~bit, __ATOMIC_SEQ_CST);
            ports[found++] = word * 64 + (uint32_t)__builtin_ctzll(bit);
        }
    }
    return found;
}

/* Let a port fire again, after the work; it fires at once if it became pending meanwhile. */
static inline void exen_unmask(struct exen *xen, uint32_t port)
{
    uint64_t bit = UINT64_C(1) << (port % 64);
    uint32_t word = port % EXEN_PORTS / 64;
    __atomic_fetch_and(&xen->events->mask[word], ~bit, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&xen->events->pending[word], __ATOMIC_SEQ_CST) & bit)
        exen_ring(xen->eventfd);
}

/* Wait until a port may be pending: 1, or 0 after `milliseconds`. */
static inline int exen_wait_event(struct exen *xen, int milliseconds)
{
    struct pollfd wanted = {.fd = xen->eventfd, .events = POLLIN};
    int ready = poll(&wanted, 1, milliseconds);
    return ready < 0 ? -errno : ready;
}

/* ---- the store (xen/io/xs_wire.h) */

enum exen_store_type {
    EXEN_XS_READ = 2,
    EXEN_XS_WATCH = 4,
    EXEN_XS_TRANSACTION_START = 6,
    EXEN_XS_TRANSACTION_END = 7,
    EXEN_XS_WRITE = 11,
    EXEN_XS_RM = 13,
    EXEN_XS_WATCH_EVENT = 15,
    EXEN_XS_ERROR = 16
};

struct exen_store_header {
    uint32_t type, req_id, tx_id, len;
};

/* The number of an error's name; EIO for names that a frontend does not meet. */
static inline int exen_store_error(const char *name)
{
    static const struct {
        const char *name;
        int number;
    } errors[] = {{"ENOENT", ENOENT}, {"EACCES", EACCES}, {"EAGAIN", EAGAIN}, {"EEXIST", EEXIST}, {"EINVAL", EINVAL},
                  {"ENOSPC", ENOSPC}, {"E2BIG", E2BIG},   {"EBUSY", EBUSY},   {"ENOSYS", ENOSYS}};
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
        if (strcmp(name, errors[i].name) == 0)
            return -errors[i].number;
    return -EIO;
}

static inline int exen_store_get(struct exen *xen, void *data, size_t size)
{
    for (size_t have = 0; have < size;) {
        ssize_t got = recv(xen->store, (char *)data + have, size - have, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -EPIPE;
        have += (size_t)got;
    }
    return 0;
}

static inline int exen_store_put(struct exen *xen, const void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t put = send(xen->store, (const char *)data + done, size - done, MSG_NOSIGNAL);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -errno;
        done += (size_t)put;
    }
    return 0;
}

/* Receive one message, NUL-terminated in `text`: its payload's length. Watch events are counted here. */
static inline int exen_store_message(struct exen *xen, struct exen_store_header *header,
                                     char text[EXEN_STORE_PAYLOAD + 1])
{
    int result = exen_store_get(xen, header, sizeof(*header));
    if (result == 0 && header->len > EXEN_STORE_PAYLOAD)
        result = -EPROTO;
    if (result == 0)
        result = exen_store_get(xen, text, header->len);
    if (result < 0)
        return result;
    text[header->len] = '\0';
    if (header->type == EXEN_XS_WATCH_EVENT)
        xen->watch_fired = 1;
    return (int)header->len;
}

/* Send a request with a payload of two parts; the reply's payload, NUL-terminated, in `text`: its length. */
static inline int exen_store_call(struct exen *xen, uint32_t type, uint32_t tx, const void *first, size_t first_size,
                                  const void *second, size_t second_size, char text[EXEN_STORE_PAYLOAD + 1])
{
    struct exen_store_header header = {type, ++xen->next_request, tx, (uint32_t)(first_size + second_size)};
    uint32_t mine = header.req_id;
    int result;
    if (first_size + second_size > EXEN_STORE_PAYLOAD)
        return -E2BIG;
    if ((result = exen_store_put(xen, &header, sizeof(header))) < 0 ||
        (result = exen_store_put(xen, first, first_size)) < 0 ||
        (result = exen_store_put(xen, second, second_size)) < 0)
        return result;
    do
        result = exen_store_message(xen, &header, text);
    while (result >= 0 && (header.type == EXEN_XS_WATCH_EVENT || header.req_id != mine));
    return result >= 0 && header.type == EXEN_XS_ERROR ? exen_store_error(text) : result;
}

/* Read a node into `value`, NUL-terminated: its length. Relative paths begin at /local/domain/<own domid>/. */
static inline int exen_store_read(struct exen *xen, uint32_t tx, const char *path, char *value, size_t size)
{
    char text[EXEN_STORE_PAYLOAD + 1];
    int length = exen_store_call(xen, EXEN_XS_READ, tx, path, strlen(path) + 1, "", 0, text);
    if (length < 0)
        return length;
    if ((size_t)length >= size)
        return -ERANGE;
    memcpy(value, text, (size_t)length + 1);
    return length;
}

static inline int exen_store_write(struct exen *xen, uint32_t tx, const char *path, const char *value)
{
    char text[EXEN_STORE_PAYLOAD + 1];
    int result = exen_store_call(xen, EXEN_XS_WRITE, tx, path, strlen(path) + 1, value, strlen(value), text);
    return result < 0 ? result : 0;
}

/* Begin a transaction: 0, and its id in `tx`. */
static inline int exen_store_begin(struct exen *xen, uint32_t *tx)
{
    char text[EXEN_STORE_PAYLOAD + 1];
    int result = exen_store_call(xen, EXEN_XS_TRANSACTION_START, 0, "", 1, "", 0, text);
    if (result < 0)
        return result;
    *tx = (uint32_t)strtoul(text, NULL, 10);
    return 0;
}

/* Commit a transaction; -EAGAIN: another client changed one of its nodes; repeat the whole transaction. */
static inline int exen_store_commit(struct exen *xen, uint32_t tx)
{
    char text[EXEN_STORE_PAYLOAD + 1];
    int result = exen_store_call(xen, EXEN_XS_TRANSACTION_END, tx, "T", 2, "", 0, text);
    return result < 0 ? result : 0;
}

/* Watch a path and all below it. The watch fires once at the beginning. */
static inline int exen_store_watch(struct exen *xen, const char *path)
{
    char text[EXEN_STORE_PAYLOAD + 1];
    int result = exen_store_call(xen, EXEN_XS_WATCH, 0, path, strlen(path) + 1, "watch", 6, text);
    return result < 0 ? result : 0;
}

/* Wait until a watch has fired since the last call: 1, or 0 after `milliseconds`. */
static inline int exen_store_wait_watch(struct exen *xen, int milliseconds)
{
    struct exen_store_header header;
    char text[EXEN_STORE_PAYLOAD + 1];
    while (!xen->watch_fired) {
        struct pollfd wanted = {.fd = xen->store, .events = POLLIN};
        int ready = poll(&wanted, 1, milliseconds);
        if (ready <= 0)
            return ready < 0 ? -errno : 0;
        int result = exen_store_message(xen, &header, text);
        if (result < 0)
            return result;
    }
    xen->watch_fired = 0;
    return 1;
}

#endif
