// SPDX-License-Identifier: Apache-2.0
/*
 * A guest of emulated Xen in C: joins, connects its vif 0, sends one frame, receives one, prints both.
 *
 * It needs gcc, libc and one header. A Makefile of one line builds it:
 *     guest: guest.c; $(CC) -std=c11 -Wall -Wextra -O2 $$(netback emulate --cflags) -o $@ $<
 * Run each of these in a terminal of its own, and send a frame to the guest (`ping` through the tap does):
 *     netback emulate --dir ~/xen
 *     netback run --platform emulated --dir ~/xen
 *     ./guest ~/xen               # prints its domid, then waits for its vif
 *     netback attach --dir ~/xen DOMID --net tap:vifx
 *
 * It makes none of the toolstack's nodes: `netback attach` writes device/vif/0.
 */
#include "netback/emulated_xen.h"

#define DEVICE "device/vif/0"
#define SECONDS 60
#define RING_SLOTS 256u /* the largest power of two of (4096 - 64) / 12 and / 8 */

enum state { INITIALISING = 1, INIT_WAIT = 2, CONNECTED = 4, CLOSING = 5, CLOSED = 6 };

/* xen/io/netif.h and xen/io/ring.h. TX is what the guest sends, RX what it receives. */
struct tx_request { uint32_t gref; uint16_t offset, flags, id, size; };
struct tx_response { uint16_t id; int16_t status; };
struct rx_request { uint16_t id, pad; uint32_t gref; };
struct rx_response { uint16_t id, offset, flags; int16_t status; };
struct ring_header { uint32_t req_prod, req_event, rsp_prod, rsp_event, unused[12]; };
struct tx_ring {
    struct ring_header head;
    union { struct tx_request request; struct tx_response response; } slot[RING_SLOTS];
};
struct rx_ring {
    struct ring_header head;
    union { struct rx_request request; struct rx_response response; } slot[RING_SLOTS];
};

struct vif {
    struct exen xen;
    char backend[256], mac[18];
    uint32_t backend_domid, port;
    struct tx_ring *tx;
    struct rx_ring *rx;
    uint32_t tx_frame, rx_frame[RING_SLOTS];
    int tx_ring_ref, rx_ring_ref, tx_gref, rx_gref[RING_SLOTS];
};

static int check(int result, const char *what)
{
    if (result >= 0)
        return result;
    fprintf(stderr, "guest: %s: %s\n", what, strerror(-result));
    exit(1);
}

static void *page_of(struct vif *vif, uint32_t *frame)
{
    *frame = exen_alloc_page(&vif->xen);
    return *frame ? exen_page(&vif->xen, *frame) : (check(-ENOMEM, "page"), NULL);
}

static int grant(struct vif *vif, uint32_t frame, int readonly)
{
    return check(exen_grant(&vif->xen, frame, (uint16_t)vif->backend_domid, readonly), "grant");
}

/* ---- the store */

static int backend_state(struct vif *vif)
{
    char path[300], value[16];
    snprintf(path, sizeof(path), "%s/state", vif->backend);
    int length = exen_store_read(&vif->xen, 0, path, value, sizeof(value));
    return length > 0 ? atoi(value) : 0;
}

static void wait_news(struct vif *vif, const char *what)
{
    if (check(exen_store_wait_watch(&vif->xen, SECONDS * 1000), "watch") == 0)
        check(-ETIMEDOUT, what);
}

static void wait_backend(struct vif *vif, enum state least, const char *what)
{
    while (backend_state(vif) < (int)least)
        wait_news(vif, what);
}

static void find_device(struct vif *vif)
{
    char domid[16];
    check(exen_store_watch(&vif->xen, DEVICE), "watch " DEVICE);
    while (exen_store_read(&vif->xen, 0, DEVICE "/backend", vif->backend, sizeof(vif->backend)) < 0 ||
           exen_store_read(&vif->xen, 0, DEVICE "/backend-id", domid, sizeof(domid)) < 0 ||
           exen_store_read(&vif->xen, 0, DEVICE "/mac", vif->mac, sizeof(vif->mac)) < 0)
        wait_news(vif, "no " DEVICE " came: was `netback attach` run?");
    vif->backend_domid = (uint32_t)atoi(domid);
    check(exen_store_watch(&vif->xen, vif->backend), "watch the backend");
}

/* The guest's side of page flipping is gone: a backend that cannot copy cannot serve it. */
static void check_backend(struct vif *vif)
{
    char path[300], value[4];
    snprintf(path, sizeof(path), "%s/feature-rx-copy", vif->backend);
    if (exen_store_read(&vif->xen, 0, path, value, sizeof(value)) < 1 || strcmp(value, "1") != 0)
        check(-EOPNOTSUPP, "the backend has no feature-rx-copy");
}

static void set_state(struct vif *vif, enum state state)
{
    char value[4];
    snprintf(value, sizeof(value), "%d", (int)state);
    check(exen_store_write(&vif->xen, 0, DEVICE "/state", value), "write state");
}

static void write_number(struct vif *vif, uint32_t tx, const char *path, int number)
{
    char value[16];
    snprintf(value, sizeof(value), "%d", number);
    check(exen_store_write(&vif->xen, tx, path, value), path);
}

static void publish(struct vif *vif)
{
    uint32_t tx;
    int result;
    do {
        check(exen_store_begin(&vif->xen, &tx), "transaction");
        write_number(vif, tx, DEVICE "/tx-ring-ref", vif->tx_ring_ref);
        write_number(vif, tx, DEVICE "/rx-ring-ref", vif->rx_ring_ref);
        write_number(vif, tx, DEVICE "/event-channel", (int)vif->port);
        write_number(vif, tx, DEVICE "/request-rx-copy", 1);
        write_number(vif, tx, DEVICE "/feature-rx-notify", 1);
        write_number(vif, tx, DEVICE "/feature-no-csum-offload", 1); /* so frames come with their checksums */
        result = exen_store_commit(&vif->xen, tx);
    } while (result == -EAGAIN);
    check(result, "commit");
}

/* ---- the rings */

static void make_rings(struct vif *vif)
{
    uint32_t frame;
    vif->tx = page_of(vif, &frame);
    vif->tx_ring_ref = grant(vif, frame, 0);
    vif->rx = page_of(vif, &frame);
    vif->rx_ring_ref = grant(vif, frame, 0);
    vif->tx->head = vif->rx->head = (struct ring_header){.req_event = 1, .rsp_event = 1};
    page_of(vif, &vif->tx_frame);
    vif->tx_gref = grant(vif, vif->tx_frame, 1);
    for (uint32_t id = 0; id < RING_SLOTS; id++) {
        page_of(vif, &vif->rx_frame[id]);
        vif->rx_gref[id] = grant(vif, vif->rx_frame[id], 0);
        vif->rx->slot[id].request = (struct rx_request){.id = (uint16_t)id, .gref = (uint32_t)vif->rx_gref[id]};
    }
    __atomic_store_n(&vif->rx->head.req_prod, RING_SLOTS, __ATOMIC_RELEASE);
    vif->port = (uint32_t)check(exen_alloc_unbound(&vif->xen, vif->backend_domid), "event channel");
}

/* Wait until a ring has its first response. */
static void wait_response(struct vif *vif, const struct ring_header *head, const char *what)
{
    uint32_t ports[4];
    while (__atomic_load_n(&head->rsp_prod, __ATOMIC_ACQUIRE) == 0) {
        if (check(exen_wait_event(&vif->xen, SECONDS * 1000), "poll") == 0)
            check(-ETIMEDOUT, what);
        int count = check(exen_take(&vif->xen, ports, 4), "take");
        for (int i = 0; i < count; i++) /* then check the ring again: no later event is lost */
            exen_unmask(&vif->xen, ports[i]);
    }
}

static void print_frame(const char *verb, const uint8_t *frame, unsigned length)
{
    printf("%s %u bytes:", verb, length);
    for (unsigned i = 0; i < length && i < 64; i++)
        printf(" %02x", frame[i]);
    printf(length > 64 ? " ...\n" : "\n");
    fflush(stdout);
}

/* A broadcast of the ethertype for local experiments. */
static unsigned fill_frame(struct vif *vif, uint8_t *frame)
{
    unsigned mac[6];
    memset(frame, 0xff, 6);
    if (sscanf(vif->mac, "%x:%x:%x:%x:%x:%x", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]) != 6)
        check(-EINVAL, DEVICE "/mac");
    for (int i = 0; i < 6; i++)
        frame[6 + i] = (uint8_t)mac[i];
    frame[12] = 0x88;
    frame[13] = 0xb5;
    int text = snprintf((char *)frame + 14, 64, "hello from domain %u", vif->xen.domid);
    return 14 + (unsigned)text < 60 ? 60 : 14 + (unsigned)text;
}

static void send_frame(struct vif *vif)
{
    uint8_t *frame = exen_page(&vif->xen, vif->tx_frame);
    unsigned length = fill_frame(vif, frame);
    vif->tx->slot[0].request = (struct tx_request){.gref = (uint32_t)vif->tx_gref, .size = (uint16_t)length};
    __atomic_store_n(&vif->tx->head.req_prod, 1, __ATOMIC_RELEASE);
    exen_notify(&vif->xen, vif->port);
    wait_response(vif, &vif->tx->head, "no answer to the frame sent");
    if (vif->tx->slot[0].response.status != 0)
        check(-EIO, "the backend refused the frame");
    print_frame("sent", frame, length);
}

static void receive_frame(struct vif *vif)
{
    wait_response(vif, &vif->rx->head, "no frame came");
    struct rx_response response = vif->rx->slot[0].response;
    if (response.id >= RING_SLOTS || response.offset > EXEN_PAGE || response.status < 0 ||
        response.status > (int)(EXEN_PAGE - response.offset))
        check(-EIO, "the backend's answer is no frame");
    uint8_t *page = exen_page(&vif->xen, vif->rx_frame[response.id]);
    print_frame("received", page + response.offset, (unsigned)response.status);
}

/* Through Closing to Closed: the backend unmaps the rings before we revoke them. */
static void disconnect(struct vif *vif)
{
    set_state(vif, CLOSING);
    wait_backend(vif, CLOSING, "the backend does not close");
    set_state(vif, CLOSED);
    wait_backend(vif, CLOSED, "the backend does not reach Closed");
    check(exen_revoke(&vif->xen, (uint32_t)vif->tx_ring_ref), "revoke the TX ring");
    check(exen_revoke(&vif->xen, (uint32_t)vif->rx_ring_ref), "revoke the RX ring");
}

int main(int argc, char **argv)
{
    static struct vif vif;
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: %s DIR [NAME]\n", argv[0]);
        return 2;
    }
    check(exen_join(&vif.xen, argv[1], EXEN_DOMID_ANY, argc > 2 ? argv[2] : "c-guest", 512, 1), argv[1]);
    printf("domain %u\n", vif.xen.domid);
    fflush(stdout);
    find_device(&vif);
    wait_backend(&vif, INIT_WAIT, "the backend does not offer the vif");
    check_backend(&vif);
    make_rings(&vif);
    publish(&vif);
    set_state(&vif, CONNECTED);
    wait_backend(&vif, CONNECTED, "the backend does not connect");
    printf("connected to %s\n", vif.backend);
    send_frame(&vif);
    receive_frame(&vif);
    disconnect(&vif);
    exen_leave(&vif.xen);
    return 0;
}
