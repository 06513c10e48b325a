#include "sphere_rule.h"

#include <algorithm>
#include <cmath>

#include "api.h"

namespace malax {

namespace {

// All points that the octahedral group makes of one; its z follows from the norm.
struct Orbit {
    double x, y, weight;
};

struct Rule {
    int degree;
    std::vector<Orbit> orbits;
};

const double third = 0.57735026918962576451, half = 0.70710678118654752440;

// V. I. Lebedev, USSR Comput. Math. Math. Phys. 15, 44 (1975) and 16, 10 (1976); V. I. Lebedev and
// D. N. Laikov, Doklady Mathematics 59, 477 (1999)
const Rule RULES[] = {
    {3, {{1, 0, 1 / 6.0}}},
    {5, {{1, 0, 1 / 15.0}, {third, third, 0.075}}},
    {7, {{1, 0, 1 / 21.0}, {third, third, 9 / 280.0}, {half, half, 4 / 105.0}}},
    {9, {{1, 0, 1 / 105.0}, {third, third, 9 / 280.0}, {0.88807383397711526, 0.4597008433809831, 1 / 35.0}}},
    {11,
     {{1, 0, 4 / 315.0},
      {third, third, 27 / 1280.0},
      {half, half, 64 / 2835.0},
      {0.90453403373329089, 0.30151134457776357, 14641 / 725760.0}}},
    {13,
     {{1, 0, 0.00051306717973384648},
      {third, third, -0.029586038961038959},
      {half, half, 0.016604069565742039},
      {0.73379938570534275, 0.48038446141526142, 0.026576207082159461},
      {0.94715622136258792, 0.3207726489807764, 0.01652217099371571}}},
    {15,
     {{1, 0, 0.011544011544011539},
      {third, third, 0.011943909085856278},
      {0.69435400660266644, 0.69435400660266644, 0.011876501294537137},
      {0.85251831170126757, 0.3696028464541502, 0.011110555710603398},
      {0.92733065715117247, 0.37424303909034118, 0.011812303746904479}}},
    {17,
     {{1, 0, 0.0038282704949371611},
      {third, third, 0.009793737512487511},
      {0.69042104838229224, 0.69042104838229224, 0.0099428148911781013},
      {0.82876998125259227, 0.39568947305594188, 0.0095954713360709605},
      {0.87815891060406615, 0.47836902881215021, 0.0096949963616630268},
      {0.96512403508659406, 0.18511563534473621, 0.0082117372831911097}}},
    {19,
     {{1, 0, 0.00059963136886213809},
      {third, third, 0.0072105153601444878},
      {half, half, 0.0073729997186207548},
      {0.67644104001142635, 0.67644104001142635, 0.007116355493117555},
      {0.8070898183595826, 0.4174961227965453, 0.0067538294863144768},
      {0.97488864367717321, 0.1574676672039082, 0.0075743941590540346},
      {0.88227001126032267, 0.4493328323269557, 0.0069910873533032616}}},
    {21,
     {{1, 0, 0.0055448429020373653},
      {third, third, 0.0063836747735150929},
      {half, half, 0.0060713327706707508},
      {0.67436014603627659, 0.67436014603627659, 0.0063179290098137253},
      {0.79179555939349211, 0.43189106967194102, 0.0062016700065890768},
      {0.93264259031269059, 0.2551252621114134, 0.0051833875877477908},
      {0.96523242197644843, 0.26139313603359882, 0.0054771433851373468},
      {0.85441580468465883, 0.49904531617960368, 0.0059683839876811563}}},
};

void add_orbit(const Orbit &orbit, std::vector<SpherePoint> &points) {
    const double rest = 1 - orbit.x * orbit.x - orbit.y * orbit.y;
    double v[3] = {orbit.x, orbit.y, rest > 1e-12 ? std::sqrt(rest) : 0.0};
    // the third coordinate comes out of a difference: where two are equal they are made equal to the bit
    for (int d = 0; d < 2; ++d) {
        if (std::fabs(v[2] - v[d]) < 1e-12) v[2] = v[d];
    }
    std::sort(v, v + 3);
    do {
        for (int signs = 0; signs < 8; ++signs) {
            double p[3];
            bool twice = false;
            for (int d = 0; d < 3; ++d) {
                const bool minus = signs >> d & 1;
                twice = twice || (minus && v[d] == 0);
                p[d] = minus ? -v[d] : v[d];
            }
            if (!twice) points.push_back({p[0], p[1], p[2], orbit.weight});
        }
    } while (std::next_permutation(v, v + 3));
}

}  // namespace

std::vector<SpherePoint> lebedev_rule(int degree) {
    for (const Rule &rule : RULES) {
        if (rule.degree < degree) continue;
        std::vector<SpherePoint> points;
        for (const Orbit &orbit : rule.orbits) add_orbit(orbit, points);
        return points;
    }
    throw Error(MALAX_INTERNAL_ERROR, "no rule of this degree");
}

}  // namespace malax
