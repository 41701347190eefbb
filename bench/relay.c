/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The baselines of the bench: a relay of frames between two links, without rings and grants.
 *
 *   relay one A B CPU_A CPU_B   one process reads each link and writes the other
 *   relay two A B CPU_A CPU_B   one process per link; frames pass through slots of shared memory: netback's work
 *                               (two processes, frames through memory that both reach) without Xen's protocol
 *   relay copy A B CPU_A CPU_B  the same, but the process of A copies each frame once between that memory and its own, as a
 *                               backend must: the other end could change a frame after it was checked
 *
 * Both use what netback's packet peer uses: AF_PACKET with PACKET_VNET_HDR, batches of recvmmsg and sendmmsg, large socket
 * buffers, promiscuous mode, PACKET_IGNORE_OUTGOING, POLLOUT after EAGAIN. The kernel reads a frame directly into the slot
 * that the other process writes from: `one` and `two` have no copies but the kernel's. An eventfd is written only if the other
 * sleeps.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif

enum {
    BURST = 64,                      /* frames of one system call */
    SLOTS = 64,                      /* frames between the processes: more only let an overload build up (256 halved the UDP rate) */
    FRAME_BYTES = 65536 + 512,       /* a virtio_net_hdr and the largest frame; off powers of two, to spread over the cache */
    RECEIVE_BYTES = 8 << 20,         /* socket buffers, as netback's packet peer asks for them */
    SEND_BYTES = 256 * 1024,
    WANTS_FRAMES = 1,
    WANTS_ROOM = 2,
};

struct ring {                        /* one producer, one consumer */
    _Alignas(64) uint32_t produced;
    _Alignas(64) uint32_t consumed;
    uint32_t length[SLOTS];
    _Alignas(64) uint8_t frame[SLOTS][FRAME_BYTES];
};

struct shared {
    struct ring ring[2];             /* ring[i]: from side i's link to the other side */
    struct { _Alignas(64) uint32_t flags; } asleep[2];       /* WANTS_*: what side i sleeps for */
};

struct side {
    int index, link, bell, other_bell;
    struct ring *out, *in;
    uint32_t *asleep, *other_asleep;
    int full;                        /* the link returned EAGAIN: wait for POLLOUT */
    uint8_t (*own)[FRAME_BYTES];     /* buffers that frames are copied through; NULL: none are */
};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void set_option(int fd, int level, int option, const void *value, socklen_t size, const char *name)
{
    if (setsockopt(fd, level, option, value, size) < 0)
        die(name);
}

static int open_link(const char *name)
{
    int one = 1, receive = RECEIVE_BYTES, send = SEND_BYTES;
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = (int)if_nametoindex(name)};
    struct packet_mreq promiscuous = {.mr_ifindex = address.sll_ifindex, .mr_type = PACKET_MR_PROMISC};
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);      /* protocol 0: receives nothing until bound */
    if (fd < 0 || address.sll_ifindex == 0)
        die(name);
    set_option(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one, "PACKET_VNET_HDR");
    set_option(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one, "PACKET_IGNORE_OUTGOING");
    set_option(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promiscuous, sizeof promiscuous, "PACKET_MR_PROMISC");
    set_option(fd, SOL_SOCKET, SO_RCVBUFFORCE, &receive, sizeof receive, "SO_RCVBUFFORCE");
    set_option(fd, SOL_SOCKET, SO_SNDBUFFORCE, &send, sizeof send, "SO_SNDBUFFORCE");
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("bind");
    return fd;
}

static void pin(int cpu)
{
    cpu_set_t set;
    if (cpu < 0)
        return;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) < 0)
        die("sched_setaffinity");
}

static void lay_out(struct mmsghdr *messages, struct iovec *vectors, int count)
{
    memset(messages, 0, sizeof *messages * (size_t)count);
    for (int i = 0; i < count; i++) {
        messages[i].msg_hdr.msg_iov = &vectors[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
}

/* Write frames in order; return how many are finished (a frame that the link refuses is lost, as on a wire). */
static int send_frames(int fd, struct iovec *vectors, int count, int *full)
{
    struct mmsghdr messages[BURST];
    int done = 0;
    lay_out(messages, vectors, count);
    while (done < count) {
        int sent = sendmmsg(fd, messages + done, (unsigned)(count - done), MSG_DONTWAIT);
        if (sent > 0) {
            done += sent;
        } else if (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM) {
            *full = 1;
            break;
        } else if (errno != EINTR) {
            done += 1;
        }
    }
    return done;
}

/* Read up to `count` frames, one vector each; set its length to the frame's. */
static int receive_frames(int fd, struct iovec *vectors, int count)
{
    struct mmsghdr messages[BURST];
    int got;
    lay_out(messages, vectors, count);
    got = recvmmsg(fd, messages, (unsigned)count, MSG_DONTWAIT, NULL);
    for (int i = 0; i < got; i++)
        vectors[i].iov_len = messages[i].msg_len;
    return got < 0 ? 0 : got;
}

/* ---- one process ---- */

struct way {                         /* one direction: frames read from one link that the other did not take yet */
    int from, to, full;
    int first, count;
    struct iovec vectors[BURST];
    uint8_t (*buffers)[FRAME_BYTES];
};

static int move_way(struct way *way)
{
    if (way->first == way->count && !way->full) {
        for (int i = 0; i < BURST; i++)
            way->vectors[i] = (struct iovec){way->buffers[i], FRAME_BYTES};
        way->first = 0;
        way->count = receive_frames(way->from, way->vectors, BURST);
    }
    if (way->first < way->count && !way->full)
        way->first += send_frames(way->to, way->vectors + way->first, way->count - way->first, &way->full);
    return way->count == BURST && !way->full;
}

static short wanted(const struct way *in, const struct way *out)
{
    return (short)((in->full ? 0 : POLLIN) | (out->full ? POLLOUT : 0));
}

static void relay_one(const char *a, const char *b, int cpu)
{
    static struct way ways[2];
    struct pollfd polled[2] = {{.fd = open_link(a)}, {.fd = open_link(b)}};
    pin(cpu);
    for (int i = 0; i < 2; i++) {
        ways[i] = (struct way){.from = polled[i].fd, .to = polled[!i].fd, .buffers = malloc((size_t)BURST * FRAME_BYTES)};
        if (!ways[i].buffers)
            die("malloc");
    }
    for (;;) {
        int more = move_way(&ways[0]) | move_way(&ways[1]);
        if (more)
            continue;
        polled[0].events = wanted(&ways[0], &ways[1]);
        polled[1].events = wanted(&ways[1], &ways[0]);
        poll(polled, 2, -1);
        for (int i = 0; i < 2; i++)
            if (polled[i].revents & (POLLOUT | POLLERR))
                ways[!i].full = 0;
    }
}

/* ---- two processes ---- */

static uint32_t waiting(struct ring *ring)
{
    return __atomic_load_n(&ring->produced, __ATOMIC_ACQUIRE) - __atomic_load_n(&ring->consumed, __ATOMIC_ACQUIRE);
}

/* Wake the other side if it sleeps. The index is published before; the sleeper reads it again after it set its flag. */
static void wake(struct side *side, uint32_t wants)
{
    uint64_t one = 1;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(side->other_asleep, __ATOMIC_RELAXED) & wants && __atomic_exchange_n(side->other_asleep, 0, __ATOMIC_SEQ_CST))
        if (write(side->other_bell, &one, sizeof one) < 0)
            die("eventfd");
}

/* From the link to the other side. */
static int from_link(struct side *side)
{
    struct ring *ring = side->out;
    struct iovec vectors[BURST];
    uint32_t at = ring->produced, room = SLOTS - waiting(ring);
    int count = room < BURST ? (int)room : BURST, got = 0;
    for (int i = 0; i < count; i++)
        vectors[i] = (struct iovec){side->own ? side->own[i] : ring->frame[(at + (uint32_t)i) % SLOTS], FRAME_BYTES};
    if (count)
        got = receive_frames(side->link, vectors, count);
    if (!got)
        return 0;
    for (int i = 0; side->own && i < got; i++)
        memcpy(ring->frame[(at + (uint32_t)i) % SLOTS], side->own[i], vectors[i].iov_len);
    for (int i = 0; i < got; i++)
        ring->length[(at + (uint32_t)i) % SLOTS] = (uint32_t)vectors[i].iov_len;
    __atomic_store_n(&ring->produced, at + (uint32_t)got, __ATOMIC_RELEASE);
    wake(side, WANTS_FRAMES);
    return got == count;             /* fewer: the link has no more */
}

/* From the other side to the link. */
static int to_link(struct side *side)
{
    struct ring *ring = side->in;
    struct iovec vectors[BURST];
    uint32_t at = ring->consumed, ready = waiting(ring);
    int count = ready < BURST ? (int)ready : BURST, done;
    if (!count || side->full)
        return 0;
    for (int i = 0; i < count; i++)
        vectors[i] = (struct iovec){ring->frame[(at + (uint32_t)i) % SLOTS], ring->length[(at + (uint32_t)i) % SLOTS]};
    for (int i = 0; side->own && i < count; i++)
        vectors[i].iov_base = memcpy(side->own[i], vectors[i].iov_base, vectors[i].iov_len);
    done = send_frames(side->link, vectors, count, &side->full);
    __atomic_store_n(&ring->consumed, at + (uint32_t)done, __ATOMIC_RELEASE);
    wake(side, WANTS_ROOM);
    return 1;
}

static void sleep_side(struct side *side)
{
    struct pollfd polled[2] = {{.fd = side->link}, {.fd = side->bell, .events = POLLIN}};
    int room = waiting(side->out) < SLOTS;
    uint64_t rung;
    __atomic_store_n(side->asleep, (side->full ? 0u : WANTS_FRAMES) | (room ? 0u : WANTS_ROOM), __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if ((side->full || !waiting(side->in)) && (room || waiting(side->out) == SLOTS)) {
        polled[0].events = (short)((room ? POLLIN : 0) | (side->full ? POLLOUT : 0));
        poll(polled, 2, -1);
    }
    __atomic_store_n(side->asleep, 0, __ATOMIC_SEQ_CST);
    if (polled[0].revents & (POLLOUT | POLLERR))
        side->full = 0;
    if (polled[1].revents && read(side->bell, &rung, sizeof rung) < 0 && errno != EAGAIN)
        die("eventfd");
}

static void relay_side(struct side *side, int cpu)
{
    pin(cpu);
    for (;;) {
        int more = from_link(side);
        more |= to_link(side);
        if (!more)
            sleep_side(side);
    }
}

static void relay_two(const char *names[2], const int cpus[2], int copies)
{
    int memory = memfd_create("relay", MFD_CLOEXEC);
    int bells[2] = {eventfd(0, EFD_NONBLOCK), eventfd(0, EFD_NONBLOCK)};
    struct shared *shared;
    if (memory < 0 || bells[0] < 0 || bells[1] < 0 || ftruncate(memory, sizeof *shared) < 0)
        die("memfd");
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (shared == MAP_FAILED)
        die("mmap");
    for (int i = 1; i >= 0; i--) {   /* side 1 is the child, and ends with its parent */
        struct side side = {
            .index = i, .bell = bells[i], .other_bell = bells[!i], .out = &shared->ring[i], .in = &shared->ring[!i],
            .asleep = &shared->asleep[i].flags, .other_asleep = &shared->asleep[!i].flags,
        };
        pid_t child = i ? fork() : 0;
        if (child < 0)
            die("fork");
        if (child)
            continue;
        if (i)
            prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (i == 0 && copies && !(side.own = malloc((size_t)BURST * FRAME_BYTES)))
            die("malloc");
        side.link = open_link(names[i]);
        relay_side(&side, cpus[i]);
    }
}

int main(int argc, char **argv)
{
    if (argc != 6 || (strcmp(argv[1], "one") && strcmp(argv[1], "two") && strcmp(argv[1], "copy"))) {
        fprintf(stderr, "usage: relay one|two|copy LINK_A LINK_B CPU_A CPU_B\n");
        return 2;
    }
    const char *names[2] = {argv[2], argv[3]};
    const int cpus[2] = {atoi(argv[4]), atoi(argv[5])};
    if (!strcmp(argv[1], "one"))
        relay_one(names[0], names[1], cpus[0]);
    else
        relay_two(names, cpus, !strcmp(argv[1], "copy"));
    return 0;
}
