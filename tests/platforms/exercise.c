// SPDX-License-Identifier: Apache-2.0
/* Every function of the header against a running emulated Xen: a guest and a handle of domain 0, in one process. */
#include "netback/emulated_xen.h"

#define EXPECT(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
            return 1; \
        } \
    } while (0)

static int events(struct exen *guest, struct exen *dom0)
{
    uint32_t taken[2];
    int theirs = exen_alloc_unbound(guest, 0);
    EXPECT(theirs > 0);
    exen_notify(guest, (uint32_t)theirs); /* no far side */
    int ours = exen_bind_interdomain(dom0, guest->domid, (uint32_t)theirs);
    EXPECT(ours > 0);
    EXPECT(exen_bind_interdomain(dom0, guest->domid, (uint32_t)theirs) == -EINVAL);
    EXPECT(exen_wait_event(dom0, 5000) == 1);
    EXPECT(exen_take(dom0, taken, 2) == 1 && taken[0] == (uint32_t)ours);
    exen_notify(guest, (uint32_t)theirs); /* masked: silent until unmasked */
    EXPECT(exen_wait_event(dom0, 10) == 0);
    exen_unmask(dom0, (uint32_t)ours);
    EXPECT(exen_wait_event(dom0, 5000) == 1 && exen_take(dom0, taken, 2) == 1);
    exen_notify(dom0, (uint32_t)ours);
    EXPECT(exen_wait_event(guest, 5000) == 1 && exen_take(guest, taken, 2) == 1 && taken[0] == (uint32_t)theirs);

    int second = exen_alloc_unbound(guest, 0); /* two pending, taken one by one */
    int far = exen_bind_interdomain(dom0, guest->domid, (uint32_t)second);
    exen_unmask(dom0, (uint32_t)ours);
    exen_notify(guest, (uint32_t)theirs);
    EXPECT(exen_wait_event(dom0, 5000) == 1 && exen_take(dom0, taken, 1) == 1);
    EXPECT(exen_wait_event(dom0, 5000) == 1 && exen_take(dom0, taken, 1) == 1);
    EXPECT(exen_take(dom0, taken, 1) == 0);

    EXPECT(exen_close_port(dom0, (uint32_t)far) == 0);
    EXPECT(exen_close_port(dom0, (uint32_t)far) == -EINVAL);
    exen_notify(guest, (uint32_t)second); /* unbound again: nothing */
    EXPECT(exen_wait_event(dom0, 10) == 0);
    far = exen_bind_interdomain(dom0, guest->domid, (uint32_t)second);
    EXPECT(far > 0 && exen_wait_event(dom0, 5000) == 1 && exen_take(dom0, taken, 2) == 1);
    return 0;
}

static int grants(struct exen *guest, struct exen *dom0)
{
    struct exen_reply reply;
    int fds[2];
    uint32_t frame = exen_alloc_page(guest);
    int gref = exen_grant(guest, frame, 0, 0);
    EXPECT(gref >= (int)EXEN_FIRST_GREF && exen_grant(guest, frame, 0, 1) == gref + 1);
    EXPECT(exen_request(dom0, EXEN_MAP, guest->domid, (uint32_t)gref, 0, &reply, fds) == 0 && reply.page == frame);
    close(fds[0]);
    EXPECT(exen_revoke(guest, (uint32_t)gref) == -EBUSY);
    EXPECT(exen_request(dom0, EXEN_UNMAP, 0, reply.number, 0, &reply, fds) == 0);
    EXPECT(exen_revoke(guest, (uint32_t)gref) == 0);
    EXPECT(exen_request(dom0, EXEN_MAP, guest->domid, (uint32_t)gref, 0, &reply, fds) == -EINVAL && reply.status == -1);
    EXPECT(exen_request(dom0, EXEN_MAP, guest->domid, (uint32_t)gref + 1, 0, &reply, fds) == -EINVAL);
    EXPECT(exen_grant(guest, frame, 0, 0) == gref); /* free again */
    while (exen_grant(guest, frame, 0, 0) > 0)
        continue;
    EXPECT(exen_grant(guest, frame, 0, 0) == -ENOSPC);
    while (exen_alloc_page(guest))
        continue;
    return 0;
}

static int store(struct exen *guest, struct exen *dom0)
{
    char value[8], path[64];
    uint32_t tx;
    EXPECT(exen_store_watch(guest, "data") == 0);
    EXPECT(exen_store_wait_watch(guest, 5000) == 1);
    EXPECT(exen_store_wait_watch(guest, 10) == 0);
    EXPECT(exen_store_write(guest, 0, "data/key", "1234567") == 0);
    EXPECT(exen_store_wait_watch(guest, 5000) == 1);
    EXPECT(exen_store_read(guest, 0, "data/key", value, sizeof(value)) == 7 && strcmp(value, "1234567") == 0);
    EXPECT(exen_store_read(guest, 0, "data/key", value, 7) == -ERANGE);
    EXPECT(exen_store_read(guest, 0, "data/none", value, sizeof(value)) == -ENOENT);
    EXPECT(exen_store_write(guest, 0, "/tool/key", "x") == -EACCES);
    EXPECT(exen_store_begin(guest, &tx) == 0);
    EXPECT(exen_store_read(guest, tx, "data/key", value, sizeof(value)) == 7);
    EXPECT(exen_store_write(guest, tx, "data/key", "mine") == 0);
    snprintf(path, sizeof(path), "/local/domain/%u/data/key", guest->domid);
    EXPECT(exen_store_write(dom0, 0, path, "theirs") == 0);
    EXPECT(exen_store_commit(guest, tx) == -EAGAIN);
    EXPECT(exen_store_begin(guest, &tx) == 0 && exen_store_write(guest, tx, "data/key", "mine") == 0);
    EXPECT(exen_store_commit(guest, tx) == 0);
    EXPECT(exen_store_read(dom0, 0, path, value, sizeof(value)) == 4 && strcmp(value, "mine") == 0);
    return 0;
}

int main(int argc, char **argv)
{
    struct exen guest, dom0, refused;
    uint32_t taken[1];
    EXPECT(argc == 2);
    EXPECT(exen_join(&guest, argv[1], EXEN_DOMID_ANY, "guest", 16, 1) == 0 && guest.domid == 1);
    EXPECT(exen_join(&refused, argv[1], 1, "guest", 16, 1) == -EEXIST && refused.memory == NULL);
    EXPECT(exen_join(&refused, "/nowhere", 1, "guest", 16, 1) == -ENOENT);
    EXPECT(exen_attach(&refused, argv[1], 77) == -ESRCH);
    EXPECT(exen_attach(&dom0, argv[1], 0) == 0 && dom0.domid == 0);
    int failed = events(&guest, &dom0) || grants(&guest, &dom0) || store(&guest, &dom0);
    exen_leave(&guest);
    EXPECT(exen_take(&dom0, taken, 1) == 0);
    exen_leave(&dom0);
    return failed;
}
