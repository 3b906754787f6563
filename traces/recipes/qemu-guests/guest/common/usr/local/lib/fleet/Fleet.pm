package Fleet;
# Seeded text and bytes for the guests' data: the same seed gives the same data in every guest.
use strict;
use warnings;

my @WORDS = qw(account address amount answer archive balance basket branch budget cargo carrier catalog
    charge client contract counter courier credit customer date delivery deposit desk discount dispatch
    export factor field folder freight goods harbour import index invoice item journal label ledger limit
    line list margin market notice number offer office order parcel partner payment period plan price
    product profit purchase quantity quote rate receipt record region report request return review route
    sale sample schedule season section service shipment signature source staff status stock store
    summary supplier supply table target term ticket total transfer unit value vendor volume warehouse);

# A small generator (64-bit LCG, upper bits) whose state is its own: perl's rand() differs between builds.
sub new {
    my ($class, $text) = @_;
    my $state = 14695981039346656037;
    { use integer; $state = ($state ^ ord($_)) * 1099511628211 for split //, $text; }
    return bless { state => $state }, $class;
}

sub next_int {
    my ($self, $limit) = @_;
    { use integer; $self->{state} = $self->{state} * 6364136223846793005 + 1442695040888963407; }
    return (($self->{state} >> 33) & 0x7fffffff) % $limit;
}

sub words {
    my ($self, $n) = @_;
    return join ' ', map { $WORDS[$self->next_int(scalar @WORDS)] } 1 .. $n;
}

# n bytes that do not compress: stands for images and other media.
sub blob {
    my ($self, $n) = @_;
    my $blob = pack 'V*', map { ($self->next_int(65536) << 16) | $self->next_int(65536) } 1 .. ($n + 3) / 4;
    return substr $blob, 0, $n;
}

# One more good round of load; `ready` waits for the third, and `status` of the recipe reads every sixth.
my $rounds = 0;
sub round_done {
    $rounds++;
    open my $file, '>', '/run/fleet-rounds.new' or die "rounds: $!";
    print $file "$rounds\n";
    close $file;
    rename '/run/fleet-rounds.new', '/run/fleet-rounds';
    if ($rounds % 6 == 0) {
        open my $line, '>', '/dev/ttyS0' or die "serial line: $!";
        print $line "FLEET-ROUNDS $rounds\n";
        close $line;
    }
    return $rounds;
}

1;
