/* Pages in blocks of zstd frames; crd/archive/pack.py tells their layout. Whatever is stored is hostile until checked. */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "core.h"

enum { PAGE = 4096, HASH = 16, BLOCK_PAGES = 64, WORD = 4, PACK_SHIFT = 32 };

static uint64_t block_of(uint64_t number)
{
    uint64_t page = number & (((uint64_t)1 << PACK_SHIFT) - 1);

    return number - page + page / BLOCK_PAGES;
}

static int compare_words(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

size_t crd_blocks_of(const uint64_t *numbers, size_t n, uint64_t *blocks)
{
    size_t found = 0, unique = 0;

    for (size_t i = 0; i < n; i++) {
        uint64_t block = block_of(numbers[i]);
        if (!found || blocks[found - 1] != block)
            blocks[found++] = block;
    }
    qsort(blocks, found, sizeof(*blocks), compare_words);
    for (size_t i = 0; i < found; i++)
        if (!unique || blocks[unique - 1] != blocks[i])
            blocks[unique++] = blocks[i];
    return unique;
}

struct wanted {
    uint64_t number;
    size_t at; /* in the output, in pages */
};

static int compare_wanted(const void *a, const void *b)
{
    const struct wanted *x = a, *y = b;

    return (x->number > y->number) - (x->number < y->number);
}

/* A frame of a block. */
struct frame {
    const unsigned char *stored;
    size_t stored_bytes;
    size_t first, pages; /* in the block */
};

static bool find_frame(const struct crd_block *block, size_t page, struct frame *frame)
{
    const unsigned char *words = block->stored;
    uint32_t frame_bytes, length;

    if (block->stored_bytes < WORD || page >= block->pages)
        return false;
    memcpy(&frame_bytes, words, WORD);
    if (!frame_bytes || frame_bytes % PAGE || frame_bytes > BLOCK_PAGES * PAGE)
        return false;
    size_t frame_pages = frame_bytes / PAGE, index = page / frame_pages;
    size_t n_frames = (block->pages + frame_pages - 1) / frame_pages, end = (1 + n_frames) * WORD;
    if (block->stored_bytes < end)
        return false;
    for (size_t i = 0; i < n_frames; i++) {
        memcpy(&length, words + (1 + i) * WORD, WORD);
        if (length > block->stored_bytes - end)
            return false;
        if (i == index)
            *frame = (struct frame){words + end, length, index * frame_pages, frame_pages};
        end += length;
    }
    if (frame->first + frame->pages > block->pages)
        frame->pages = block->pages - frame->first;
    return end == block->stored_bytes;
}

static bool open_frame(ZSTD_DCtx *zstd, const struct frame *frame, unsigned char *content)
{
    size_t length = frame->pages * PAGE;

    return ZSTD_findFrameCompressedSize(frame->stored, frame->stored_bytes) == frame->stored_bytes &&
           ZSTD_decompressDCtx(zstd, content, length, frame->stored, frame->stored_bytes) == length;
}

/* Whether a frame is wanted from its beginning to its end, one page after the other. */
static bool is_wanted_whole(const struct wanted *wanted, size_t n, uint64_t first_number, size_t pages)
{
    for (size_t i = 0; i < pages; i++)
        if (i == n || wanted[i].number != first_number + i || wanted[i].at != wanted->at + i)
            return false;
    return pages == n || wanted[pages].number >= first_number + pages;
}

/* What pages are opened with, and where they and their hashes go. */
struct opening {
    ZSTD_DCtx *zstd;
    unsigned char *spare;
    const unsigned char *key;
    unsigned char *pages, *hashes;
};

/* Opens the frame of the first page that is wanted, and returns how many of the wanted ones it held; 0: it is damaged. */
static size_t take_frame(const struct opening *opening, const struct wanted *wanted, size_t n,
                         const struct crd_block *block)
{
    size_t in_block = (wanted->number & UINT32_MAX) % BLOCK_PAGES, taken = 0;
    struct frame frame = {0};

    if (!find_frame(block, in_block, &frame))
        return 0;
    uint64_t first = wanted->number - in_block + frame.first;
    if (is_wanted_whole(wanted, n, first, frame.pages))
        return open_frame(opening->zstd, &frame, opening->pages + wanted->at * PAGE) ? frame.pages : 0;
    if (!open_frame(opening->zstd, &frame, opening->spare))
        return 0;
    for (; taken < n && wanted[taken].number < first + frame.pages; taken++)
        memcpy(opening->pages + wanted[taken].at * PAGE, opening->spare + (wanted[taken].number - first) * PAGE, PAGE);
    return taken;
}

/* Hashes pages that have just been taken, while the cache has them. */
static void hash_taken(const struct opening *opening, const struct wanted *wanted, size_t n)
{
    for (size_t i = 0, many; i < n; i += many) {
        for (many = 1; i + many < n && wanted[i + many].at == wanted[i].at + many; many++)
            ;
        crd_pages_hash(opening->pages + wanted[i].at * PAGE, many, opening->key, opening->hashes + wanted[i].at * HASH);
    }
}

static bool open_all(const struct opening *opening, const struct wanted *wanted, size_t n, const struct crd_block *blocks,
                     size_t n_blocks)
{
    const struct crd_block *block = blocks, *end = blocks + n_blocks;

    for (size_t i = 0, taken; i < n; i += taken) {
        uint64_t id = block_of(wanted[i].number);
        while (block < end && block->number < id)
            block++;
        if (block == end || block->number != id)
            return false;
        taken = take_frame(opening, wanted + i, n - i, block);
        if (!taken)
            return false;
        hash_taken(opening, wanted + i, taken);
    }
    return true;
}

int crd_pages_open(const uint64_t *numbers, size_t n, const struct crd_block *blocks, size_t n_blocks,
                   const unsigned char *key, unsigned char *pages, unsigned char *hashes, struct crd_error *err)
{
    struct wanted *wanted = calloc(n + 1, sizeof(*wanted));
    struct opening opening = {ZSTD_createDCtx(), malloc(BLOCK_PAGES * PAGE), key, pages, hashes};
    int result = 0;

    errno = ENOMEM;
    if (!wanted || !opening.spare || !opening.zstd) {
        result = crd_fail(err, "open pages", 0, 0);
    } else {
        bool sorted = true;
        for (size_t i = 0; i < n; i++) {
            wanted[i] = (struct wanted){numbers[i], i};
            sorted = sorted && (!i || numbers[i - 1] <= numbers[i]);
        }
        if (!sorted)
            qsort(wanted, n, sizeof(*wanted), compare_wanted);
        if (!open_all(&opening, wanted, n, blocks, n_blocks)) {
            errno = EBADMSG;
            result = crd_fail(err, "open pages", 0, 0);
        }
    }
    ZSTD_freeDCtx(opening.zstd);
    free(opening.spare);
    free(wanted);
    return result;
}
