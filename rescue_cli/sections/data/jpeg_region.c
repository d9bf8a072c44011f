/* Decodes a rectangle of a JPEG file with libjpeg-turbo, to the pixels that a decode of the whole
 * image has there. jpeg_region.py compiles this file and says how it is used.
 *
 * The declarations are those of the ABI of libjpeg 6.2, as far as they are used; the library itself
 * refuses a structure of another size.
 */
#include <setjmp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { ABI = 62, BLOCK = 8, RGB = 2, EOI = 0xd9, RST0 = 0xd0, RST7 = 0xd7, PLANES = 3, ROWS = 16 };

struct source {
    const unsigned char *next;
    size_t left;
    void (*functions[5])(void);
};

struct errors {
    void (*fatal)(void *);
    void (*emit)(void *, int);
    void (*print)(void *);
    void (*format)(void *, char *);
    void (*reset)(void *);
    int code;
    union {
        int numbers[8];
        char text[80];
    } message;
    int trace_level;
    long warnings;
    const void *tables[2];
    int ends[3];
    jmp_buf leave; /* ours, behind what the library knows */
};

struct decoder {
    struct errors *errors;
    void *memory, *progress, *ours;
    int is_decoder, state;
    struct source *source;
    unsigned width, height;
    int components, colour_space, output_space;
    unsigned scale[2];
    double gamma;
    int buffered, raw, dct_method, fancy_upsampling, block_smoothing;
    int quantise, dither, two_passes, colours, passes[3];
    unsigned output_width, output_height;
    int output_colours, output_components, rows_at_once, actual_colours;
    void *colour_map;
    unsigned row; /* that is read next */
    int input_scan;
    unsigned input_block_row;
    int output_scan;
    unsigned output_block_row;
    void *coefficient_bits, *tables[12];
    int precision;
    void *component_table;
    int progressive, arithmetic;
    unsigned char conditions[48];
    unsigned restart_interval;
    int saw_jfif;
    unsigned char version[2], density_unit;
    unsigned short density[2];
    int saw_adobe;
    unsigned char adobe_transform;
    int sited;
    void *markers;
    int h_factor, v_factor; /* largest sampling factors: width and height of an MCU in blocks */
    int block_size;
    unsigned block_rows;
    void *range_limit;
    int scan_components;
    void *scan_table[4];
    unsigned mcus_per_row, mcu_rows;
    int mcu_blocks, mcu_components[10], progression[4], unread_marker;
    void *modules[11];
};

extern struct errors *jpeg_std_error(struct errors *);
extern void jpeg_CreateDecompress(struct decoder *, int, size_t);
extern void jpeg_destroy_decompress(struct decoder *);
extern void jpeg_mem_src(struct decoder *, const unsigned char *, unsigned long);
extern int jpeg_read_header(struct decoder *, int);
extern int jpeg_start_decompress(struct decoder *);
extern void jpeg_crop_scanline(struct decoder *, unsigned *, unsigned *);
extern unsigned jpeg_skip_scanlines(struct decoder *, unsigned);
extern unsigned jpeg_read_scanlines(struct decoder *, unsigned char **, unsigned);

static void leave(void *decoder) { longjmp(((struct decoder *)decoder)->errors->leave, 1); }

static void print_nothing(void *decoder) { (void)decoder; }

/* Whether the coded pixels go on to the end of the image: the next marker that does not belong to
 * them is EOI. */
static int is_complete(const struct source *source)
{
    const unsigned char *at = source->next, *end = at + source->left;
    while ((at = memchr(at, 0xff, (size_t)(end - at))) != NULL) {
        while (at < end && *at == 0xff)
            at++;
        if (at == end)
            return 0;
        if (*at != 0 && (*at < RST0 || *at > RST7))
            return *at == EOI;
    }
    return 0;
}

/* Writes the pixels, (height, width, 3) RGB. Returns 0, or 1 where the whole image must be decoded
 * to know what to do: it is cut short, has an error, or does not hold the rectangle. */
int decode_jpeg_region(const unsigned char *data, unsigned long bytes, unsigned top, unsigned left,
                       unsigned height, unsigned width, unsigned char *pixels)
{
    struct decoder decoder;
    struct errors errors;
    unsigned char *volatile lines = NULL;
    volatile int failed = 1;
    memset(&decoder, 0, sizeof decoder);
    decoder.errors = jpeg_std_error(&errors);
    errors.fatal = leave;
    errors.print = print_nothing;
    if (setjmp(errors.leave) == 0) {
        jpeg_CreateDecompress(&decoder, ABI, sizeof decoder);
        jpeg_mem_src(&decoder, data, bytes);
        jpeg_read_header(&decoder, 1);
        decoder.output_space = RGB;
        int within = top + height <= decoder.height && left + width <= decoder.width;
        /* A progressive file is read whole, with a warning where it is cut short */
        if (within && (decoder.progressive || is_complete(decoder.source))) {
            jpeg_start_decompress(&decoder);
            /* A row or column of chroma depends on its neighbours: one MCU more on each side */
            unsigned across = (unsigned)(decoder.h_factor * BLOCK);
            unsigned down = (unsigned)(decoder.v_factor * BLOCK);
            unsigned start = left > across ? left - across : 0;
            unsigned end = left + width + across;
            if (end > decoder.output_width)
                end = decoder.output_width;
            unsigned span = end - start;
            if (span < decoder.output_width)
                jpeg_crop_scanline(&decoder, &start, &span);
            if (top / down > 1)
                jpeg_skip_scanlines(&decoder, (top / down - 1) * down);
            size_t row_bytes = (size_t)width * PLANES, line_bytes = (size_t)span * PLANES;
            lines = malloc(line_bytes * ROWS);
            while (lines != NULL && decoder.row < top + height) {
                unsigned char *rows[ROWS];
                unsigned first = decoder.row, wanted = top + height - first;
                for (unsigned i = 0; i < ROWS; i++)
                    rows[i] = lines + i * line_bytes;
                unsigned read = jpeg_read_scanlines(&decoder, rows, wanted < ROWS ? wanted : ROWS);
                for (unsigned i = first < top ? top - first : 0; i < read; i++)
                    memcpy(pixels + (first + i - top) * row_bytes,
                           rows[i] + (left - start) * PLANES, row_bytes);
            }
            failed = lines == NULL || errors.warnings != 0;
        }
    }
    jpeg_destroy_decompress(&decoder);
    free(lines);
    return failed;
}
