#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core.h"
#include "scan.h"

#define PAGE_BYTES 4096
#define ENTRIES 512

/* Documentation/admin-guide/mm/pagemap.rst; a mark looks like a page in the last of the swap areas, and where in it says
 * what it is for, include/linux/swapops.h: PTE_MARKER_*. */
#define PRESENT (1ull << 63)
#define SWAPPED (1ull << 62)
#define FILE_OR_SHARED (1ull << 61)
#define GUARD (1ull << 58)
#define SWAP_AREA(entry) ((entry) & 0x1f)
#define MARKS 0x1f
#define MARK(entry) ((entry) >> 5 & 0x3ffffffffffff)
#define WRITE_PROTECTED 1
#define GUARDED 4

void crd_scan_begin(struct scan_argument *argument, const struct crd_run *area, uint64_t *address,
                    struct scan_region *regions, size_t room)
{
    if (!*address)
        *address = area->address;
    argument->size = sizeof *argument;
    argument->start = *address;
    argument->end = area->address + area->length;
    argument->vec = (uint64_t)(uintptr_t)regions;
    argument->vec_len = room < SCAN_REGIONS ? room : SCAN_REGIONS;
}

void crd_runs_add(struct crd_runs *runs, uint64_t start, uint64_t end)
{
    struct crd_run *last = runs->n ? &runs->runs[runs->n - 1] : NULL;
    uint64_t last_end = last ? last->address + last->length : 0;

    if (!last || start < last->address || start > last_end) {
        runs->runs[runs->n++] = (struct crd_run){start, end - start};
        runs->bytes += end - start;
    } else if (end > last_end) {
        last->length += end - last_end;
        runs->bytes += end - last_end;
    }
}

static int is_mark(uint64_t entry)
{
    return !(entry & PRESENT) && entry & SWAPPED && SWAP_AREA(entry) == MARKS;
}

static int is_guard(uint64_t entry)
{
    return entry & GUARD || (is_mark(entry) && MARK(entry) & GUARDED);
}

/* A mark of another kind counts: nobody can read such a page, so it is not taken for an empty one. */
static int is_own(uint64_t entry)
{
    return entry & (PRESENT | SWAPPED) && !(entry & FILE_OR_SHARED) && !is_guard(entry) &&
           !(is_mark(entry) && MARK(entry) == WRITE_PROTECTED);
}

/* How many runs surely fit into both lists. */
static size_t room(const struct crd_runs *own, const struct crd_runs *guards)
{
    return own->capacity - (own->n > guards->n ? own->n : guards->n);
}

/* Add what the entries say, as far as there is room: *start is where it has come to. */
static int add_by_entries(int pagemap_fd, uint64_t *start, uint64_t end, struct crd_runs *own, struct crd_runs *guards,
                          struct crd_error *err)
{
    uint64_t entries[ENTRIES];

    while (*start < end && room(own, guards) > ENTRIES / 2) {
        size_t n = (end - *start) / PAGE_BYTES < ENTRIES ? (end - *start) / PAGE_BYTES : ENTRIES;
        ssize_t got = pread(pagemap_fd, entries, n * sizeof *entries, (off_t)(*start / PAGE_BYTES * sizeof *entries));
        if (got < 0)
            return crd_fail(err, "read the page map", 0, *start);
        for (size_t i = 0; i < (size_t)got / sizeof *entries; i++)
            if (is_own(entries[i]) || is_guard(entries[i]))
                crd_runs_add(is_guard(entries[i]) ? guards : own, *start + i * PAGE_BYTES, *start + (i + 1) * PAGE_BYTES);
        *start += n * PAGE_BYTES;
    }
    return 0;
}

static int add_by_scan(int pagemap_fd, const struct crd_run *area, uint64_t *address, struct crd_runs *own,
                       struct crd_runs *guards, struct crd_error *err)
{
    struct scan_region regions[SCAN_REGIONS];
    struct scan_argument argument = {
        .category_inverted = IS_FILE | IS_ZERO,
        .category_mask = IS_FILE | IS_ZERO,
        .category_anyof_mask = IS_PRESENT | IS_SWAPPED,
        .return_mask = IS_SWAPPED,
    };
    crd_scan_begin(&argument, area, address, regions, room(own, guards));
    int found = ioctl(pagemap_fd, SCAN, &argument);
    if (found < 0)
        return crd_fail(err, "ioctl PAGEMAP_SCAN", 0, *address);
    for (int i = 0; i < found; i++) {
        uint64_t at = regions[i].start;
        if (!room(own, guards)) {
            *address = at;
            return 0;
        }
        if (!(regions[i].categories & IS_SWAPPED)) {
            crd_runs_add(own, at, regions[i].end);
            continue;
        }
        if (add_by_entries(pagemap_fd, &at, regions[i].end, own, guards, err) < 0)
            return -1;
        if (at < regions[i].end) {
            *address = at;
            return 0;
        }
    }
    *address = argument.walk_end;
    return 0;
}

int crd_pages_own(int pagemap_fd, int scan, const struct crd_run *areas, size_t n, size_t *area_ret, uint64_t *address_ret,
                  struct crd_runs *own, struct crd_runs *guards, struct crd_error *err)
{
    for (; *area_ret < n; ++*area_ret, *address_ret = 0) {
        const struct crd_run *area = &areas[*area_ret];
        uint64_t end = area->address + area->length;
        if (!*address_ret)
            *address_ret = area->address;
        while (*address_ret < end) {
            if (room(own, guards) <= ENTRIES / 2)
                return 0;
            if ((scan ? add_by_scan(pagemap_fd, area, address_ret, own, guards, err)
                      : add_by_entries(pagemap_fd, address_ret, end, own, guards, err)) < 0)
                return -1;
        }
    }
    return 0;
}

static int is_gone(int pagemap_fd, uint64_t page, unsigned char *gone, struct crd_error *err)
{
    uint64_t entry;
    ssize_t got = pread(pagemap_fd, &entry, sizeof entry, (off_t)(page / PAGE_BYTES * sizeof entry));

    if (got >= 0 && got != sizeof entry)
        errno = ESRCH;
    if (got != sizeof entry)
        return crd_fail(err, "read the page map", 0, page);
    *gone = !(entry & (PRESENT | SWAPPED));
    return 0;
}

int crd_pages_gone(int pid, int pagemap_fd, const uint64_t *pages, size_t n, unsigned char *gone, struct crd_error *err)
{
    int nodes[ENTRIES];

    for (size_t i = 0; i < n; i++) {
        size_t many = n - i < ENTRIES ? n - i : ENTRIES;
        /* Those that are there are on some node, which one call tells of all; where it is not to be had, of none. */
        if (i % ENTRIES == 0 && syscall(SYS_move_pages, pid, many, pages + i, NULL, nodes, 0) < 0)
            memset(nodes, -1, sizeof nodes);
        gone[i] = 0;
        if (nodes[i % ENTRIES] < 0 && is_gone(pagemap_fd, pages[i], &gone[i], err) < 0)
            return -1;
    }
    return 0;
}
