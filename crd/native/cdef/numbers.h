/* Numbers of pages: the place of a pack in a list << 32, and the page's in the pack. */

/* used[i] = 1 for the place of each. Places are below n_places, or -1 is returned. */
int crd_places_used(const uint64_t *numbers, size_t n, unsigned char *used, size_t n_places, struct crd_error *err);

/* Give each another place; as before. */
int crd_places_replace(uint64_t *numbers, size_t n, const uint32_t *places, size_t n_places, struct crd_error *err);

/* Numbers to the signed difference, less one, from the one before, and back. */
void crd_numbers_to_differences(uint64_t *numbers, size_t n);
void crd_numbers_from_differences(uint64_t *numbers, size_t n);

/* The hashes (16 bytes) of pages out of those of the pages of each place's pack. -1: there is no such page. */
int crd_numbers_hashes(const uint64_t *numbers, size_t n, const unsigned char *const *packs, const size_t *pages,
                       size_t n_places, unsigned char *hashes, struct crd_error *err);
