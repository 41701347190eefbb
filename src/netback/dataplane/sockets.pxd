# SPDX-License-Identifier: Apache-2.0
"""The C library's messages and vectors, and AF_PACKET's ancillary data."""
from libc.stdint cimport uint32_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <netinet/in.h>
    #include <linux/if_packet.h>
    #define AUX_BYTES CMSG_SPACE(sizeof(struct tpacket_auxdata))
    /* The VLAN tag that the kernel took out of the frame (TPID << 16 | TCI), or 0. */
    static inline uint32_t stripped_tag(struct msghdr *message)
    {
        for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
            struct tpacket_auxdata aux;
            if (c->cmsg_level != SOL_PACKET || c->cmsg_type != PACKET_AUXDATA || c->cmsg_len < CMSG_LEN(sizeof aux))
                continue;
            __builtin_memcpy(&aux, CMSG_DATA(c), sizeof aux);
            if (aux.tp_status & TP_STATUS_VLAN_VALID)
                return (uint32_t)(aux.tp_status & TP_STATUS_VLAN_TPID_VALID ? aux.tp_vlan_tpid : 0x8100) << 16
                       | aux.tp_vlan_tci;
        }
        return 0;
    }
    /* The error that a socket keeps for its next call, which then reports it no more; 0: none. */
    static inline int pending_error(int fd)
    {
        int error = 0;
        socklen_t size = sizeof error;
        return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 ? error : 0;
    }
    /* A socket's option of SOL_SOCKET that is an int; -1 without one. */
    static inline int socket_option(int fd, int option)
    {
        int value = -1;
        socklen_t size = sizeof value;
        return getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 ? value : -1;
    }
    """
    enum:
        AUX_BYTES
        MSG_DONTWAIT
        MSG_NOSIGNAL
        MSG_TRUNC
        SOCK_SEQPACKET
        SO_PROTOCOL
        SO_TYPE
        IPPROTO_UDP
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    cdef struct msghdr:
        void *msg_name
        unsigned int msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, void *timeout) nogil
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags) nogil
    ssize_t readv(int fd, const iovec *vectors, int count) nogil
    ssize_t writev(int fd, const iovec *vectors, int count) nogil
    uint32_t stripped_tag(msghdr *message) nogil
    int pending_error(int fd) nogil
    int socket_option(int fd, int option) nogil
