/* The blocks that pages are in, each once, in order. A page's number, and a block's, have a pack in their upper 32 bits. Of
 * the n places for blocks the first that are returned are filled in. */
size_t crd_blocks_of(const uint64_t *numbers, size_t n, uint64_t *blocks);

/* A block: its number, how it is stored, how long that is, and how many pages it must hold. */
struct crd_block {
    uint64_t number;
    const unsigned char *stored;
    uint64_t stored_bytes, pages;
};

/* Pages by their numbers, out of blocks in ascending order, and the hash of each (crd_pages_hash); each frame is
 * decompressed once. EBADMSG: a block is missing or damaged. ENOMEM. */
int crd_pages_open(const uint64_t *numbers, size_t n, const struct crd_block *blocks, size_t n_blocks,
                   const unsigned char *key, unsigned char *pages, unsigned char *hashes, struct crd_error *err);
