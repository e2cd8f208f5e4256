#include <errno.h>
#include <string.h>

#include "core.h"

enum { SHIFT = 32, HASH = 16 };
#define PAGE_MASK ((UINT64_C(1) << SHIFT) - 1)

static int out_of_range(struct crd_error *err)
{
    errno = ERANGE;
    return crd_fail(err, "number a page", 0, 0);
}

int crd_places_used(const uint64_t *numbers, size_t n, unsigned char *used, size_t n_places, struct crd_error *err)
{
    for (size_t i = 0; i < n; i++) {
        if (numbers[i] >> SHIFT >= n_places)
            return out_of_range(err);
        used[numbers[i] >> SHIFT] = 1;
    }
    return 0;
}

int crd_places_replace(uint64_t *numbers, size_t n, const uint32_t *places, size_t n_places, struct crd_error *err)
{
    for (size_t i = 0; i < n; i++) {
        if (numbers[i] >> SHIFT >= n_places)
            return out_of_range(err);
        numbers[i] = (uint64_t)places[numbers[i] >> SHIFT] << SHIFT | (numbers[i] & PAGE_MASK);
    }
    return 0;
}

void crd_numbers_to_differences(uint64_t *numbers, size_t n)
{
    for (size_t i = n; i-- > 0;)
        numbers[i] -= (i ? numbers[i - 1] : 0) + 1;
}

void crd_numbers_from_differences(uint64_t *numbers, size_t n)
{
    uint64_t number = 0;

    for (size_t i = 0; i < n; i++)
        numbers[i] = number += numbers[i] + 1;
}

int crd_numbers_hashes(const uint64_t *numbers, size_t n, const unsigned char *const *packs, const size_t *pages,
                       size_t n_places, unsigned char *hashes, struct crd_error *err)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t place = numbers[i] >> SHIFT, page = numbers[i] & PAGE_MASK;
        if (place >= n_places || page >= pages[place])
            return out_of_range(err);
        memcpy(hashes + i * HASH, packs[place] + page * HASH, HASH);
    }
    return 0;
}
