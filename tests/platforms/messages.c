// SPDX-License-Identifier: Apache-2.0
/* Writes one of each message to stdout, every field with a different value, then the memory's layout. */
#include "netback/emulated_xen.h"

int main(void)
{
    struct exen_hello hello = {.magic = EXEN_MAGIC, .version = EXEN_VERSION, .flags = EXEN_ATTACH, .domid = EXEN_DOMID_ANY,
                               .grant_pages = EXEN_MAX_GRANT_PAGES, .reserved = 9, .name = "forty bytes of name"};
    struct exen_request request = {.op = EXEN_UNMAP, .domid = 21, .number = 22, .flags = EXEN_MAP_READONLY};
    struct exen_reply reply = {.result = -EINVAL, .status = -3, .domid = 31, .number = 32, .grant_pages = 33, .page = 34,
                               .handle = UINT64_C(0x1234567890abcdef)};
    struct exen_grant_entry entry = {.flags = EXEN_GRANT_ACCESS | EXEN_GRANT_READONLY, .domid = 41, .frame = 42};
    struct exen_event_page page = {.generation = 51};
    page.pending[1] = 52;
    page.mask[2] = 53;
    fwrite(&hello, sizeof(hello), 1, stdout);
    fwrite(&request, sizeof(request), 1, stdout);
    fwrite(&reply, sizeof(reply), 1, stdout);
    fwrite(&entry, sizeof(entry), 1, stdout);
    fwrite(&page, sizeof(page), 1, stdout);
    return 0;
}
